//! Ready-made classifiers, and the tables behind them.
