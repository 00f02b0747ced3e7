//! ZC2-HMAC-SHA256, the API's signature version 2 (reference: Signature Algorithm v2).
//!
//! A pure function: the time is an argument. It must not know how a request is sent.

use ring::{digest, hmac};

use crate::secret::Secret;

/// The name of the algorithm, in `X-ZC-Signature-Method` and at the head of `Authorization`.
pub(crate) const METHOD: &str = "ZC2-HMAC-SHA256";

/// What a signature covers. `host` and `content_type` are as sent, byte for byte.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Request<'a> {
    /// The `Host` header, with the port where it is not the scheme's own.
    pub(crate) host: &'a str,
    /// The `Content-Type` header.
    pub(crate) content_type: &'a str,
    /// The JSON body.
    pub(crate) body: &'a [u8],
    /// Unix time in seconds, as in `X-ZC-Timestamp`.
    pub(crate) timestamp: u64,
}

/// The value of the `Authorization` header.
pub(crate) fn authorization(request: Request<'_>, key_id: &str, password: &Secret) -> String {
    let signature = signature(request, password);
    format!("{METHOD} Credential={key_id}, SignedHeaders=content-type;host, Signature={signature}")
}

/// The signature in lower-case hexadecimal.
pub(crate) fn signature(request: Request<'_>, password: &Secret) -> String {
    let Request { timestamp, .. } = request;
    let canonical = sha256_hex(canonical_request(request).as_bytes());
    let string_to_sign = format!("{METHOD}\n{timestamp}\n{canonical}");
    let key = hmac::Key::new(hmac::HMAC_SHA256, password.expose().as_bytes());
    hex(hmac::sign(&key, string_to_sign.as_bytes()).as_ref())
}

/// Path and query are fixed by the algorithm, whatever the URL is.
fn canonical_request(request: Request<'_>) -> String {
    format!(
        "POST\n/\n\ncontent-type:{}\nhost:{}\n\ncontent-type;host\n{}",
        request.content_type.trim(),
        request.host.trim(),
        sha256_hex(request.body),
    )
}

fn sha256_hex(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|nibble| char::from(DIGITS[usize::from(nibble)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked example of the reference.
    fn example() -> Request<'static> {
        Request {
            host: "console.zenlayer.com",
            content_type: "application/json; charset=utf-8",
            body: br#"{"pageSize":10,"pageNum":1,"zoneId":"HKG-A"}"#,
            timestamp: 1_673_361_177,
        }
    }

    #[test]
    fn the_worked_example_is_exact() {
        assert_eq!(sha256_hex(example().body), "5f714687ba91c606d503467766151206392474accd137ffea6dce2420b67c29a");
        assert_eq!(
            sha256_hex(canonical_request(example()).as_bytes()),
            "29396f9dfa0f03820b931e8aa06e20cda197e73285ebd76aceb83f7dede493ee"
        );
        assert_eq!(
            authorization(example(), "0D9UtpyKYcHxms5v", &Secret::new("Gu5t9xGARNpq86cd98joQYCN3")),
            "ZC2-HMAC-SHA256 Credential=0D9UtpyKYcHxms5v, SignedHeaders=content-type;host, \
             Signature=efb356c32e55c781e10dc676da59462c22596d82e91c57803666243379555b2f"
        );
    }

    #[test]
    fn every_part_of_the_request_is_signed() {
        let password = Secret::new("password");
        let signed = signature(example(), &password);
        let others = [
            Request { host: "console.zenlayer.com:8443", ..example() },
            Request { content_type: "application/json", ..example() },
            Request { body: b"{}", ..example() },
            Request { timestamp: 1_673_361_178, ..example() },
        ];
        for other in others {
            assert_ne!(signature(other, &password), signed, "{other:?}");
        }
        assert_ne!(signature(example(), &Secret::new("Password")), signed);
    }
}
