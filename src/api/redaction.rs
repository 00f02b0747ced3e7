//! Takes credentials out of texts from outside: an answer may echo what was sent with the request.
//!
//! Invariant: no form of one that has [`SHORTEST`] bytes is left, nor as much of the beginning of one at the end of a
//! text: the sender, the network or the exporter may have cut it there.

use std::cmp::Reverse;

use base64::Engine;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use zeroize::Zeroizing;

use super::error::{beginning, shortened, visible};
use crate::config::Proxy;
use crate::secret::Credential;

/// In bytes. A shorter text is part of other words by chance, which must stay readable. No real key or token is as short.
const SHORTEST: usize = 8;
const REDACTED: &str = "[redacted]";
const SIGNATURE: &str = "Signature=";
/// All but what a URL never encodes (RFC 3986, section 2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The end of a text that was cut short: a mark, or the replacement of a part of a character.
const CUTS: [char; 3] = ['…', '\u{fffd}', '?'];

/// The texts to take out, in lower case.
pub(super) struct Redaction {
    /// The longest first.
    forms: Vec<Zeroizing<String>>,
    /// How the `Authorization` header begins, which is no secret on its own.
    public: String,
}

impl Redaction {
    /// Takes out the credential, the `Authorization` header that was made of it, and the proxy's password.
    pub(super) fn of(credential: &Credential, authorization: &str, proxy: Option<&Proxy>) -> Self {
        let (Credential::KeyPair { password: secret, .. } | Credential::Token(secret)) = credential;
        let (public, signature) = match authorization.rfind(SIGNATURE) {
            Some(place) => authorization.split_at(place + SIGNATURE.len()),
            None => ("", ""),
        };
        let for_proxy = proxy.and_then(Proxy::user_and_password).unwrap_or_default();
        // A token for a proxy may stand in the place of the user.
        let proxy_secret = match for_proxy.split_once(':') {
            Some((user, "")) => user,
            Some((_, password)) => password,
            None => "",
        };
        let is_short_token = signature.is_empty() && secret.expose().len() < SHORTEST;
        let authorization = if is_short_token { "" } else { authorization };
        let secrets = [authorization, signature, secret.expose(), &for_proxy, proxy_secret];
        let mut forms: Vec<_> = secrets.into_iter().flat_map(forms).collect();
        forms.retain(|form| form.len() >= SHORTEST);
        forms.sort_by_key(|form| Reverse(form.len()));
        forms.dedup();
        Self { forms, public: public.to_ascii_lowercase() }
    }

    /// The text without any of them, fit for one line of a log or page.
    pub(super) fn clean(&self, text: &str) -> String {
        let text = visible(beginning(text));
        shortened(&self.replaced(&text).unwrap_or(text))
    }

    /// A text of a page without any of them; `None` where it has none.
    pub(super) fn redacted(&self, text: &str) -> Option<String> {
        // Nearly every ID and status is shorter than every form of a credential, and came whole.
        if self.forms.last().is_none_or(|shortest| text.len() < shortest.len()) {
            return None;
        }
        self.replaced(text)
    }

    /// In one pass, so that what was replaced stays as it is.
    fn replaced(&self, text: &str) -> Option<String> {
        let lower = Zeroizing::new(text.to_ascii_lowercase());
        let (mut replaced, mut place, mut is_changed) = (String::new(), 0, false);
        while let Some(c) = text[place..].chars().next() {
            if let Some(length) = self.length_at_start(&lower[place..]) {
                replaced.push_str(REDACTED);
                place += length;
                is_changed = true;
            } else {
                replaced.push(c);
                place += c.len_utf8();
            }
        }
        is_changed.then_some(replaced)
    }

    /// How much of the beginning of the text, which is in lower case, is a credential.
    fn length_at_start(&self, text: &str) -> Option<usize> {
        let whole = self.forms.iter().find(|form| text.starts_with(&***form)).map(|form| form.len());
        whole.or_else(|| {
            let rest = text.trim_end_matches(CUTS);
            let is_cut = rest.len() >= SHORTEST && !self.public.starts_with(rest);
            (is_cut && self.forms.iter().any(|form| form.starts_with(rest))).then_some(rest.len())
        })
    }
}

/// A text as it is, and as it may stand in a URL, in JSON or in Base64.
fn forms(text: &str) -> [Zeroizing<String>; 5] {
    let json = Zeroizing::new(serde_json::to_string(text).expect("a string always serializes"));
    [
        text,
        &json[1..json.len() - 1],
        &Zeroizing::new(utf8_percent_encode(text, ENCODED).to_string()),
        &Zeroizing::new(BASE64_STANDARD_NO_PAD.encode(text)),
        &Zeroizing::new(BASE64_URL_SAFE_NO_PAD.encode(text)),
    ]
    .map(|form| Zeroizing::new(form.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    const AUTHORIZATION: &str = "ZC2-HMAC-SHA256 Credential=id, SignedHeaders=content-type;host, Signature=efb356c3";

    fn key_pair() -> Redaction {
        let password = Secret::new(r#"p+"ss/w0rd=="#);
        Redaction::of(&Credential::KeyPair { id: "id".to_owned(), password }, AUTHORIZATION, None)
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
        let text = "Authorization: Bearer t0ken=t0ken= (t0ken=t0ken=)";
        assert_eq!(token("t0ken=t0ken=").clean(text), "Authorization: [redacted] ([redacted])");
    }

    fn token(secret: &str) -> Redaction {
        Redaction::of(&Credential::Token(Secret::new(secret)), &format!("Bearer {secret}"), None)
    }

    #[test]
    fn a_short_secret_leaves_other_texts_as_they_are() {
        let text = "HTTP 401, invalid token: Bearer authentication of a red cat";
        for secret in ["a", "red", "invalid"] {
            assert_eq!(token(secret).clean(text), text, "{secret}");
        }
        let text = "a redacted redacted, [redacted] Bearer redacted";
        let expected = "a [redacted] [redacted], [[redacted]] [redacted]";
        assert_eq!(token("redacted").clean(text), expected, "what was replaced is not replaced again");
    }

    #[test]
    fn the_longest_of_several_that_begin_alike_is_taken_out() {
        let password = Secret::new("password");
        let credential = Credential::KeyPair { id: "id".to_owned(), password };
        let redaction = Redaction::of(&credential, "x Signature=password-and-more", None);
        assert_eq!(redaction.clean("password-and-more, password"), "[redacted], [redacted]");
    }

    #[test]
    fn only_texts_that_have_a_credential_are_changed() {
        let redaction = token("0123456789abcdef");
        assert_eq!(redaction.redacted("932237369560662463"), None);
        assert_eq!(redaction.redacted("a name that is longer than the token"), None);
        assert_eq!(redaction.redacted("Größe 0123456789ABCDEF\n").as_deref(), Some("Größe [redacted]\n"));
        assert_eq!(
            redaction.redacted("a name that was cut 0123456789…").as_deref(),
            Some("a name that was cut [redacted]…")
        );
        assert_eq!(redaction.redacted("a name that was cut 0123456…"), None);
    }

    #[test]
    fn a_text_that_ends_within_a_credential_keeps_no_part_of_it() {
        let secret = "tok_ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
        let encoded = BASE64_STANDARD_NO_PAD.encode(secret);
        for (sent, prefix) in [(secret, ""), (&*encoded, "the "), (&format!("Bearer {secret}"), "Authorization: ")] {
            for length in SHORTEST..sent.len() {
                for cut in ["", "…", "\u{fffd}", "??"] {
                    let cleaned = token(secret).clean(&format!("{prefix}{}{cut}", &sent[..length]));
                    assert_eq!(cleaned, format!("{prefix}[redacted]{cut}"), "{length} bytes");
                }
            }
        }
        let cut = AUTHORIZATION.strip_suffix("356c3").unwrap();
        assert_eq!(key_pair().clean(cut), "[redacted]", "3 bytes of the signature");
        for length in 1..AUTHORIZATION.find("efb356c3").unwrap() {
            let public = &AUTHORIZATION[..length];
            assert_eq!(key_pair().clean(public), public, "the header is no secret up to the signature");
        }
    }

    #[test]
    fn a_text_of_megabytes_is_cut_before_it_is_cleaned() {
        let text = "tok_ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 ".repeat(100_000);
        let cleaned = token(text.split(' ').next().unwrap()).clean(&text);
        assert!(cleaned.starts_with("[redacted] [redacted] ") && cleaned.len() < 1200, "{cleaned}");
        assert!(!cleaned.contains("tok_"), "{cleaned}");
    }

    #[test]
    fn a_secret_where_a_long_text_is_cut_leaves_no_part() {
        let text = format!("{}{}", "x".repeat(295), r#"p+"ss/w0rd=="#);
        assert_eq!(key_pair().clean(&text), format!("{}[reda…", "x".repeat(295)));
    }
}
