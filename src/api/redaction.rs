//! Takes the credential out of texts from outside: an answer may echo what was sent with the request.
//!
//! Invariant: it is taken out before a text is cut short, so that no part of it is left at the end.

use std::cmp::Reverse;
use std::fmt::Write;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use super::error::{shortened, visible};
use crate::secret::Credential;

/// What to take out, in lower case, the longest first.
pub(super) struct Redaction(Vec<Zeroizing<String>>);

impl Redaction {
    /// Takes out the credential and the `Authorization` header that was made of it.
    pub(super) fn of(credential: &Credential, authorization: &str) -> Self {
        let (Credential::KeyPair { password: secret, .. } | Credential::Token(secret)) = credential;
        let signature = authorization.rsplit_once("Signature=").map_or("", |(_, signature)| signature);
        let mut forms: Vec<_> = [authorization, signature, secret.expose()].into_iter().flat_map(forms).collect();
        forms.retain(|form| !form.is_empty());
        forms.sort_by_key(|form| Reverse(form.len()));
        Self(forms)
    }

    /// The text without any of them, fit for one line of a log or page.
    pub(super) fn clean(&self, text: &str) -> String {
        shortened(&self.0.iter().fold(visible(text), |text, secret| without(text, secret)))
    }
}

/// A text as it is, and as it may stand in a URL, in JSON or in Base64.
fn forms(text: &str) -> [Zeroizing<String>; 5] {
    let json = Zeroizing::new(serde_json::to_string(text).expect("a string always serializes"));
    [
        text,
        &json[1..json.len() - 1],
        &Zeroizing::new(in_url(text)),
        &Zeroizing::new(BASE64_STANDARD_NO_PAD.encode(text)),
        &Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(text)),
    ]
    .map(|form| Zeroizing::new(form.to_ascii_lowercase()))
}

fn in_url(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            // Writing to a string does not fail.
            let _ = write!(encoded, "%{byte:02x}");
        }
        encoded
    })
}

/// The text without the secret, which is in lower case; the text may have it in any.
fn without(text: String, secret: &str) -> String {
    let lower = Zeroizing::new(text.to_ascii_lowercase());
    if !lower.contains(secret) {
        return text;
    }
    let (mut redacted, mut rest) = (String::new(), 0);
    for (place, _) in lower.match_indices(secret) {
        redacted.extend([&text[rest..place], "[redacted]"]);
        rest = place + secret.len();
    }
    redacted.push_str(&text[rest..]);
    redacted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    const AUTHORIZATION: &str = "ZC2-HMAC-SHA256 Credential=id, SignedHeaders=content-type;host, Signature=efb356c3";

    fn key_pair() -> Redaction {
        let password = Secret::new(r#"p+"ss/w0rd=="#);
        Redaction::of(&Credential::KeyPair { id: "id".to_owned(), password }, AUTHORIZATION)
    }

    #[test]
    fn no_form_of_the_credential_is_left() {
        for (echo, expected) in [
            (AUTHORIZATION.to_owned(), "[redacted]"),
            (AUTHORIZATION.to_ascii_uppercase(), "[redacted]"),
            ("Signature=EFB356C3 does not match".to_owned(), "Signature=[redacted] does not match"),
            (r#"p+"ss/w0rd== and p+"ss/w0rd=="#.to_owned(), "[redacted] and [redacted]"),
            (r#"{"password":"p+\"ss/w0rd=="}"#.to_owned(), r#"{"password":"[redacted]"}"#),
            ("?password=p%2B%22ss%2fw0rd%3D%3D&x".to_owned(), "?password=[redacted]&x"),
            (BASE64_STANDARD_NO_PAD.encode(r#"p+"ss/w0rd=="#), "[redacted]"),
            ("Größe\u{202e}p+\"ss/w0rd==".to_owned(), "Größe [redacted]"),
            ("access key id".to_owned(), "access key id"),
        ] {
            assert_eq!(key_pair().clean(&echo), expected);
        }
        let token = Redaction::of(&Credential::Token(Secret::new("t0ken=")), "Bearer t0ken=");
        assert_eq!(token.clean("Authorization: Bearer t0ken= (t0ken=)"), "Authorization: [redacted] ([redacted])");
    }

    #[test]
    fn a_secret_where_a_long_text_is_cut_leaves_no_part() {
        let text = format!("{}{}", "x".repeat(295), r#"p+"ss/w0rd=="#);
        assert_eq!(key_pair().clean(&text), format!("{}[reda…", "x".repeat(295)));
    }
}
