//! Reads error bodies (reference: Responses).
//!
//! Invariant: code, message and request ID are found whatever follows them: a body that breaks off, goes on after its
//! end, or has another shape loses only what cannot be read. Reading takes no more memory than the longest value of the
//! body, and what is kept is short.

use std::fmt;
use std::io::{self, Read};

use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{Malformed, integer, json, text};
use crate::api::codes;
use crate::api::error::beginning;

/// What the API says about a request that it refused, as it was sent: clean it before it is shown.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// Stable; `None` where it says success.
    pub code: Option<Box<str>>,
    /// For people; it may change.
    pub message: Option<Box<str>>,
    /// Zenlayer's support asks for it.
    pub request_id: Option<Box<str>>,
}

/// Reads an error body; what it does not hold is `None`.
///
/// # Errors
/// When it holds none of the three and is no JSON object.
pub fn read_refusal(body: &[u8]) -> Result<Refusal, Malformed> {
    let mut refusal = Refusal::default();
    // What follows the object is not looked at.
    let mut deserializer = serde_json::Deserializer::from_reader(Repaired(repaired(json(body)?)));
    match (Object { refusal: &mut refusal, is_outermost: true }.deserialize(&mut deserializer)) {
        Ok(Found::Other) => Err(Malformed::Shape),
        Err(error) if refusal == Refusal::default() => Err(Malformed::Json(error)),
        Ok(Found::Object) | Err(_) => Ok(refusal),
    }
}

/// Bytes of another encoding in the message, a character cut in two, or a string that was cut off must not hide the code.
/// A byte takes the place of each that is wrong, so that a text does not grow.
fn repaired(json: &[u8]) -> impl Iterator<Item = u8> {
    let repaired = json.utf8_chunks().flat_map(|chunk| {
        let wrong = chunk.invalid().iter().map(|_| b'?');
        chunk.valid().bytes().chain(wrong)
    });
    repaired.chain(*b"\"")
}

struct Repaired<I>(I);

impl<I: Iterator<Item = u8>> Read for Repaired<I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(buffer.iter_mut().zip(&mut self.0).map(|(place, byte)| *place = byte).count())
    }
}

/// What stands in the place of an object.
enum Found {
    Object,
    Other,
}

/// Notes each word as soon as it is read, so that an error further on does not lose it. The words may also stand in
/// `response` or `error`; those beside these count more.
struct Object<'a> {
    refusal: &'a mut Refusal,
    is_outermost: bool,
}

impl Object<'_> {
    fn note<'de, A: MapAccess<'de>>(&mut self, key: &str, entries: &mut A) -> Result<(), A::Error> {
        let Refusal { code, message, request_id } = &mut *self.refusal;
        let word = match key {
            "code" => code,
            "message" => message,
            "requestid" => request_id,
            "response" | "error" => {
                let inner = Object { refusal: &mut *self.refusal, is_outermost: false };
                return entries.next_value_seed(inner).map(drop);
            }
            _ => return entries.next_value::<IgnoredAny>().map(drop),
        };
        // Raw, since the parser would fail at half a surrogate pair.
        let json: Box<RawValue> = entries.next_value()?;
        let text = text(json.get()).or_else(|| integer(json.get()));
        let is_word = |text: &str| key != "code" || codes::is_failure(text);
        if let Some(text) = text.as_deref().filter(|text| is_word(text))
            && (self.is_outermost || word.is_none())
        {
            *word = Some(beginning(text).into());
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Object<'_> {
    type Value = Found;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Found, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Object<'_> {
    type Value = Found;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Found, A::Error> {
        while let Some(key) = entries.next_key::<String>()? {
            self.note(&key.to_ascii_lowercase(), &mut entries)?;
        }
        Ok(Found::Object)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Found, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Found::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Found, E> {
        Ok(Found::Other)
    }

    fn visit_unit<E>(self) -> Result<Found, E> {
        Ok(Found::Other)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Found, E> {
        Ok(Found::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Found, E> {
        Ok(Found::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Found, E> {
        Ok(Found::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Found, E> {
        Ok(Found::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(body: &[u8]) -> [Option<String>; 3] {
        let Refusal { code, message, request_id } = read_refusal(body).unwrap_or_default();
        [code, message, request_id].map(|word| word.map(String::from))
    }

    fn all_three() -> [Option<String>; 3] {
        ["X", "no", "T1"].map(|word| Some(word.to_owned()))
    }

    #[test]
    fn words_are_found_whatever_is_beside_or_around_them() {
        for body in [
            r#"{"code":"X","message":"no","requestId":"T1"}"#,
            "\u{feff}{\"requestId\":\"T1\",\"code\":\"X\",\"message\":\"no\"}",
            r#"{"code":"X","message":"no","requestId":"T1","response":"none","totalCount":"n/a","dataSet":{}}"#,
            r#"{"requestId":"T1","response":{"code":"X","message":"no","requestId":"T2"}}"#,
            r#"{"requestId":"T2","response":{"code":"Y"},"code":"X","message":"no","requestId":"T1"}"#,
            r#"{"Response":{"Error":{"Code":"X","Message":"no"},"RequestId":"T1"}}"#,
            r#"{"error":[{"code":"Y"}],"code":"X","message":"no","requestId":"T1"}"#,
        ] {
            assert_eq!(words(body.as_bytes()), all_three(), "{body}");
        }
    }

    #[test]
    fn a_body_that_breaks_off_or_goes_on_keeps_what_came_before() {
        let whole = r#"{"code":"X","requestId":"T1","message":"no"#;
        for end in ["", "\"", "\",", "\",\"more\":{\"a\":[1,", "\"}}garbage", "\"}<html>", "\",\"more\":\\", "\",7}"] {
            assert_eq!(words(format!("{whole}{end}").as_bytes()), all_three(), "{end}");
        }
        assert_eq!(words(br#"{"response":{"code":"X","requestId":"T1","message":"no"#), all_three());
        assert_eq!(words(b"{\"code\":\"X\",\"requestId\":\"T1\",\"message\":\"no\",\"x\":\"\xff"), all_three());
    }

    #[test]
    fn a_word_is_a_string_or_an_integer() {
        assert_eq!(words(br#"{"code":true,"message":["no"],"requestId":{"code":"X"}}"#), [None, None, None]);
        let integers = ["500", "-1", "18446744073709551616"].map(|word| Some(word.to_owned()));
        assert_eq!(words(br#"{"code":500,"message":-1,"requestId":18446744073709551616}"#), integers);
    }

    #[test]
    fn a_code_that_says_success_is_none() {
        for code in ["0", "200", r#""0""#, r#""ok""#, r#""Success""#, r#""""#, r#"" ""#, "null"] {
            let body = format!(r#"{{"code":{code},"message":"no","requestId":"T1","response":{{"code":"X"}}}}"#);
            assert_eq!(words(body.as_bytes()), all_three(), "{code} hides no code below it");
        }
    }

    #[test]
    fn half_a_surrogate_pair_hides_no_word() {
        let [code, message, request_id] = words(br#"{"message":"a\ud83d\"","code":"X","requestId":"T1"}"#);
        assert_eq!((code.as_deref(), request_id.as_deref()), (Some("X"), Some("T1")));
        assert_eq!(message.unwrap().replace('\u{fffd}', ""), "a\"");
    }

    #[test]
    fn a_word_is_kept_short() {
        let body = format!(r#"{{"message":"{}","code":"X"}}"#, "é".repeat(100_000));
        let [code, message, _] = words(body.as_bytes());
        assert_eq!((code.as_deref(), message.unwrap()), (Some("X"), "é".repeat(2048)));
    }

    #[test]
    fn what_holds_no_word_says_why() {
        let reason = |body: &[u8]| read_refusal(body).unwrap_err().to_string();
        assert_eq!(reason(b"<html>"), "the body is HTML, not JSON");
        assert_eq!(reason(b"[{\"code\":\"X\"}]"), "the body has neither totalCount nor an error code");
        assert!(reason(b"{\"status\":").starts_with("the body is not the JSON it should be: EOF"));
        assert_eq!(words("[".repeat(1_000_000).as_bytes()), [None, None, None]);
        let deep = format!(r#"{{"code":"X","message":"no","requestId":"T1","x":{}"#, "[".repeat(1_000_000));
        assert_eq!(words(deep.as_bytes()), all_three());
        let deep = format!(r#"{{"code":"X","message":"no","requestId":"T1",{}"#, r#""error":{"#.repeat(100_000));
        assert_eq!(words(deep.as_bytes()), all_three());
    }
}
