//! Which requests may be sent twice.

use http::{HeaderMap, Method};

/// Whether a request does its work once, however often it is sent.
///
/// By its method (`GET`, `HEAD`, `OPTIONS`, `PUT`, `DELETE`, `TRACE`: RFC 9110), or as an `Idempotency-Key` makes it so.
///
/// ```
/// use http::{HeaderMap, HeaderValue, Method};
/// use steadfast::http::is_idempotent;
///
/// let mut headers = HeaderMap::new();
/// assert!(is_idempotent(&Method::PUT, &headers));
/// assert!(!is_idempotent(&Method::POST, &headers));
///
/// headers.insert("idempotency-key", HeaderValue::from_static("\"8e03978e\""));
/// assert!(is_idempotent(&Method::POST, &headers));
/// ```
pub fn is_idempotent(method: &Method, headers: &HeaderMap) -> bool {
    let key = || headers.get("idempotency-key");
    method.is_idempotent() || key().is_some_and(|key| !key.is_empty())
}

#[cfg(all(test, not(steadfast_loom)))]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_methods_of_the_standard_are_known() {
        let none = HeaderMap::new();
        for method in ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert!(is_idempotent(&method, &none), "{method}");
        }
        for method in ["POST", "PATCH", "CONNECT", "PROPPATCH", "get"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            assert!(!is_idempotent(&method, &none), "{method}");
        }
    }

    #[test]
    fn an_empty_key_is_none() {
        let mut headers = HeaderMap::new();
        headers.insert("idempotency-key", HeaderValue::from_static(""));
        assert!(!is_idempotent(&Method::POST, &headers));
        headers.insert("idempotency-key", HeaderValue::from_static("1"));
        assert!(is_idempotent(&Method::PATCH, &headers));
    }
}
