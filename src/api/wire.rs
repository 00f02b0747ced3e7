//! What is on the wire ↔ what the exporter works with (reference: DescribeInstancesStatus, Responses).
//!
//! Invariant: an entry without a usable id is counted, and fatal only where it breaks the JSON itself; an answer
//! without `totalCount`, or with an error code, is never an empty account; no error quotes a value, which may be as long
//! as the body. It must not know how bytes are sent.

/// Derived code alone would take an array for an object, field by field.
macro_rules! objects {
    ($($object:ty),*) => {$(
        impl<'de> Shape<'de> for $object {
            fn from_object<A: MapAccess<'de>>(entries: A) -> Result<Option<Self>, A::Error> {
                Self::deserialize(MapAccessDeserializer::new(entries)).map(Some)
            }
        }
    )*};
}

mod info;
mod refusal;

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::error::{Action, CUT};
use crate::model::arena::StringArena;
use crate::secret::marked_encoding;

pub use self::info::{InfoEntry, InfoPage};
pub use self::refusal::{Refusal, read_refusal};

/// Most ids one request may name (reference: `instanceIds`).
pub const MAX_IDS: usize = 100;

/// Most entries one page may have (reference: `pageSize`).
pub const MAX_PAGE_SIZE: usize = 1000;

/// Not part of JSON; some servers send it all the same.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The longest id taken, in bytes, and the longest other text that is not cut. Real ids have 18.
const LONGEST_TEXT: usize = 256;

/// The body of a request; what is `None` is left out.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Query<'a> {
    /// Ask for these alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_ids: Option<&'a [&'a str]>,
    /// Only this resource group (`zec`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_group_id: Option<&'a str>,
    /// 1 to [`MAX_PAGE_SIZE`].
    pub page_size: usize,
    /// From 1.
    pub page_num: u64,
}

impl Query<'_> {
    /// The JSON to send.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain strings and numbers always serialize")
    }
}

/// One answer of DescribeInstancesStatus.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// What every answer has.
    pub head: Head,
    /// ID and status of each usable entry, one after the other.
    texts: StringArena,
}

/// What an answer says about itself and about the list that it is a part of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Head {
    /// Instances that match, over all pages, according to this answer.
    pub total_count: u64,
    /// Entries without a usable ID.
    pub unusable: usize,
    /// The ID of the request as it was sent, which support asks for.
    pub request_id: Option<Box<str>>,
}

impl Page {
    /// Id and status of each usable entry, in the API's order. A status that the API left out, or that is no string, is
    /// empty; one that is too long is cut.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        (0..self.texts.len() / 2).map(|row| (self.texts.at(2 * row), self.texts.at(2 * row + 1)))
    }
}

/// What one action lists, a page at a time.
pub(crate) trait Listing: Default + Send + Sync + Sized {
    /// The action that lists it.
    const ACTION: Action;
    /// The most bytes that an answer with [`MAX_PAGE_SIZE`] entries may have.
    const LONGEST_BODY: usize;
    /// One entry of `dataSet`.
    type Entry<'a>: Default + Shape<'a>;
    /// Adds an entry, or counts it where it has no usable id.
    fn push(&mut self, entry: &Self::Entry<'_>);
    /// What the answer says besides its entries.
    fn head(&self) -> &Head;
    /// The same, to be filled in.
    fn head_mut(&mut self) -> &mut Head;
    /// The ID of each usable entry.
    fn ids(&self) -> impl ExactSizeIterator<Item = &str>;
    /// Replaces each text of an entry for which there is a replacement.
    fn replace_texts(&mut self, replacement: impl Fn(&str) -> Option<String>);

    /// How many entries the API listed, usable or not.
    fn listed(&self) -> usize {
        self.ids().len() + self.head().unusable
    }

    /// Reads the body of a successful answer.
    fn read(body: &[u8]) -> Result<Answer<Self>, Malformed> {
        read::<Self>(body)
    }

    /// Reads `dataSet`, entry by entry: no list of strings in between.
    fn take<'de, A: SeqAccess<'de>>(mut entries: A) -> Result<Self, A::Error> {
        let mut page = Self::default();
        while let Some(Loose(entry)) = entries.next_element::<Loose<Self::Entry<'de>>>()? {
            page.push(&entry.unwrap_or_default());
        }
        Ok(page)
    }
}

impl Listing for Page {
    const ACTION: Action = Action::DescribeInstancesStatus;
    /// Thirty times what the entries themselves take.
    const LONGEST_BODY: usize = 2 << 20;

    type Entry<'a> = Entry<'a>;

    fn push(&mut self, entry: &Entry<'_>) {
        let Some(id) = entry.instance_id.usable() else {
            self.head.unusable += 1;
            return;
        };
        for text in [id, &label(&entry.instance_status)] {
            self.texts.push(text).expect("no longer than its body, which is capped");
        }
    }

    fn head(&self) -> &Head {
        &self.head
    }

    fn head_mut(&mut self) -> &mut Head {
        &mut self.head
    }

    fn ids(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries().map(|(id, _)| id)
    }

    fn replace_texts(&mut self, replacement: impl Fn(&str) -> Option<String>) {
        if let Some(replaced) = self.texts.replaced(replacement) {
            self.texts = replaced;
        }
    }
}

/// What a body with HTTP 200 can hold.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer<P = Page> {
    /// The payload, nested in `response` or flat.
    Page(P),
    /// An error body, whatever the HTTP status.
    Refusal(Refusal),
}

/// Why a body could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Malformed {
    /// Nothing was sent.
    #[error("the body is empty")]
    Empty,
    /// A page for people, as a proxy or gateway sends it.
    #[error("the body is HTML, not JSON")]
    Html,
    /// Compressed, without a `Content-Encoding` that says so.
    #[error("the body is compressed with gzip, and no Content-Encoding says so")]
    Gzip,
    /// JSON is UTF-8 on the wire (RFC 8259, 8.1).
    #[error("the body is {0}, not UTF-8")]
    OtherUtf(&'static str),
    /// Not UTF-8.
    #[error("the body is not UTF-8")]
    Encoding(#[from] std::str::Utf8Error),
    /// Not JSON, or cut off, or of another shape.
    #[error("the body is not the JSON it should be: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON with neither a payload nor an error.
    #[error("the body has neither totalCount nor an error code")]
    Shape,
}

/// Reads the body of a successful answer of DescribeInstancesStatus.
///
/// # Errors
/// When it is not what the reference describes.
pub fn read_answer(body: &[u8]) -> Result<Answer, Malformed> {
    read(body)
}

/// Reads the body of a successful answer of DescribeInstances.
///
/// # Errors
/// When it is not what the reference describes.
pub fn read_infos(body: &[u8]) -> Result<Answer<InfoPage>, Malformed> {
    read(body)
}

fn read<P: Listing>(body: &[u8]) -> Result<Answer<P>, Malformed> {
    let page = read_page::<P>(body);
    if page.as_ref().is_ok_and(|page| page.listed() > 0) {
        return page.map(Answer::Page);
    }
    // A failure may carry a payload at its defaults, which must not pass for an empty account.
    match read_refusal(body) {
        Ok(refusal) if refusal.code.is_some() => Ok(Answer::Refusal(refusal)),
        _ => page.map(Answer::Page),
    }
}

fn read_page<P: Listing>(body: &[u8]) -> Result<P, Malformed> {
    let json = std::str::from_utf8(json(body)?)?;
    let Envelope { request_id, response, total_count, data_set } =
        serde_json::from_str::<Loose<Envelope<'_, P>>>(json)?.0.ok_or(Malformed::Shape)?;
    let Payload { total_count, data_set } = response.0.unwrap_or(Payload { total_count, data_set });
    let Count(total_count) = total_count.ok_or(Malformed::Shape)?;
    let mut page = data_set.map(|entries| entries.0).unwrap_or_default();
    let request_id = request_id.0.map(|id| id.into_owned().into_boxed_str());
    let head = page.head_mut();
    (head.total_count, head.request_id) = (total_count, request_id);
    Ok(page)
}

/// A body that may be JSON, without a byte order mark. It may be no UTF-8.
fn json(body: &[u8]) -> Result<&[u8], Malformed> {
    if let Some(encoding) = marked_encoding(body) {
        return Err(Malformed::OtherUtf(encoding));
    }
    if body.starts_with(b"\x1f\x8b") {
        return Err(Malformed::Gzip);
    }
    let mut json = body;
    while let Some(rest) = json.strip_prefix(BYTE_ORDER_MARK) {
        json = rest;
    }
    match json.trim_ascii_start().first() {
        None => Err(Malformed::Empty),
        Some(b'<') => Err(Malformed::Html),
        Some(_) => Ok(json),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound = "P: Listing")]
struct Envelope<'a, P> {
    #[serde(borrow, default)]
    request_id: Text<'a>,
    #[serde(default)]
    response: Loose<Payload<P>>,
    total_count: Option<Count>,
    data_set: Option<Entries<P>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound = "P: Listing")]
struct Payload<P> {
    total_count: Option<Count>,
    data_set: Option<Entries<P>>,
}

/// `totalCount`. Derived code would quote whatever stands in its place.
struct Count(u64);

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let json = <&RawValue>::deserialize(deserializer)?.get();
        json.parse().map(Self).map_err(|_| D::Error::custom("totalCount must be a non-negative integer"))
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry<'a> {
    #[serde(borrow, default)]
    instance_id: Id<'a>,
    #[serde(borrow, default)]
    instance_status: Text<'a>,
}

/// `dataSet`, read straight into a page.
struct Entries<P>(P);

impl<'de, P: Listing> Deserialize<'de> for Entries<P> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor<P>(PhantomData<P>);

        impl<'de, P: Listing> Visitor<'de> for EntriesVisitor<P> {
            type Value = P;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of instances")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, entries: A) -> Result<P, A::Error> {
                P::take(entries)
            }

            fn visit_str<E: Error>(self, _: &str) -> Result<P, E> {
                Err(E::invalid_type(Unexpected::Other("string"), &self))
            }
        }

        // `deserialize_seq` would quote a string that stands in its place.
        deserializer.deserialize_any(EntriesVisitor(PhantomData)).map(Entries)
    }
}

/// A text; `None` where anything else stands in its place. Borrowed from the body where nothing in it is escaped.
#[derive(Default)]
struct Text<'a>(Option<Cow<'a, str>>);

impl Text<'_> {
    fn usable(&self) -> Option<&str> {
        self.0.as_deref().filter(|text| is_label(text))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Raw, since the parser would fail at half a surrogate pair, and with it the whole page.
        <&RawValue>::deserialize(deserializer).map(|json| Self(text(json.get())))
    }
}

/// The text of a JSON string; `None` for any other value, and for a string with half a surrogate pair.
fn string(json: &str) -> Option<Cow<'_, str>> {
    let plain = json.strip_prefix('"')?.strip_suffix('"')?;
    if plain.contains('\\') { serde_json::from_str(json).ok().map(Cow::Owned) } else { Some(Cow::Borrowed(plain)) }
}

/// The same with U+FFFD in place of half a surrogate pair: a name that was cut short in UTF-16 may end in one.
fn text(json: &str) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Bytes<'a>(#[serde(borrow)] Cow<'a, [u8]>);

    string(json).or_else(|| {
        let Bytes(bytes) = json.starts_with('"').then(|| serde_json::from_str(json).ok()).flatten()?;
        Some(String::from_utf8_lossy(&bytes).into_owned().into())
    })
}

/// The digits of an integer, of any size; `None` for any other value.
fn integer(json: &str) -> Option<Cow<'_, str>> {
    let digits = json.strip_prefix('-').unwrap_or(json);
    digits.bytes().all(|byte| byte.is_ascii_digit()).then_some(Cow::Borrowed(json))
}

/// NUL ends the input of some scrapers, so it makes a text unusable as a label. White space alone names nothing.
fn is_label(text: &str) -> bool {
    text.len() <= LONGEST_TEXT && !text.contains('\0') && !text.trim().is_empty()
}

/// A text as it may stand in a label. One that is too long is cut, for its beginning says more than nothing.
fn label<'a>(text: &'a Text<'_>) -> Cow<'a, str> {
    let Some(text) = text.0.as_deref().filter(|text| !text.contains('\0')) else {
        return Cow::Borrowed("");
    };
    if text.len() <= LONGEST_TEXT {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(LONGEST_TEXT - CUT.len());
    Cow::Owned(format!("{}{CUT}", &text[..end]))
}

/// The ID of an instance. The reference says that it is a string; an integer, which most of them look like, is taken
/// digit for digit, of any size. `None` where it is anything else.
#[derive(Default)]
struct Id<'a>(Option<Cow<'a, str>>);

impl Id<'_> {
    fn usable(&self) -> Option<&str> {
        self.0.as_deref().filter(|text| is_label(text))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Id<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Raw, since the parser would make a float of a large integer.
        let json = <&RawValue>::deserialize(deserializer)?.get();
        Ok(Self(string(json).or_else(|| integer(json))))
    }
}

/// A value of the shape that is expected, or `None` where anything else stands in its place.
struct Loose<T>(Option<T>);

impl<T> Default for Loose<T> {
    fn default() -> Self {
        Self(None)
    }
}

/// What can be expected: each shape takes one kind of JSON value.
pub(crate) trait Shape<'de>: Sized {
    fn from_object<A: MapAccess<'de>>(mut entries: A) -> Result<Option<Self>, A::Error> {
        while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn from_array<A: SeqAccess<'de>>(mut items: A) -> Result<Option<Self>, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

objects!(Entry<'de>);

impl<'de, P: Listing> Shape<'de> for Envelope<'de, P> {
    fn from_object<A: MapAccess<'de>>(entries: A) -> Result<Option<Self>, A::Error> {
        Self::deserialize(MapAccessDeserializer::new(entries)).map(Some)
    }
}

impl<'de, P: Listing> Shape<'de> for Payload<P> {
    fn from_object<A: MapAccess<'de>>(entries: A) -> Result<Option<Self>, A::Error> {
        Self::deserialize(MapAccessDeserializer::new(entries)).map(Some)
    }
}

impl<'de, T: Shape<'de>> Deserialize<'de> for Loose<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LooseVisitor(PhantomData)).map(Loose)
    }
}

struct LooseVisitor<T>(PhantomData<T>);

impl<'de, T: Shape<'de>> Visitor<'de> for LooseVisitor<T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Self::Value, A::Error> {
        T::from_object(entries)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Self::Value, A::Error> {
        T::from_array(items)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(body: &str) -> Page {
        match read_answer(body.as_bytes()) {
            Ok(Answer::Page(page)) => page,
            other => panic!("not a page: {other:?}"),
        }
    }

    fn malformed(body: &[u8]) -> String {
        read_answer(body).unwrap_err().to_string()
    }

    #[test]
    fn a_query_names_only_what_it_asks_for() {
        let query = Query { instance_ids: None, resource_group_id: None, page_size: 1000, page_num: 2 };
        assert_eq!(query.to_json(), br#"{"pageSize":1000,"pageNum":2}"#);
        let ids = ["a", "b\""];
        let query = Query { instance_ids: Some(&ids), resource_group_id: Some("rg"), page_size: 2, page_num: 1 };
        assert_eq!(
            String::from_utf8(query.to_json()).unwrap(),
            r#"{"instanceIds":["a","b\""],"resourceGroupId":"rg","pageSize":2,"pageNum":1}"#
        );
    }

    #[test]
    fn nested_and_flat_answers_are_the_same_page() {
        let payload = r#""totalCount":2,"dataSet":[{"instanceId":"a","instanceStatus":"RUNNING"},
            {"instanceStatus":"STOPPED","extra":[1,{}],"instanceId":"b\u00e9\n"}]"#;
        let nested = page(&format!(r#"{{"requestId":"T1","response":{{"requestId":"T1",{payload}}}}}"#));
        let flat = page(&format!(r#"{{"requestId":"T1",{payload}}}"#));
        assert_eq!(nested, flat);
        assert_eq!(nested.head.total_count, 2);
        assert_eq!(nested.head.request_id.as_deref(), Some("T1"));
        assert_eq!(nested.entries().collect::<Vec<_>>(), [("a", "RUNNING"), ("bé\n", "STOPPED")]);
    }

    #[test]
    fn no_data_set_is_no_entries() {
        for body in [
            r#"{"response":{"totalCount":0}}"#,
            r#"{"response":{"totalCount":0,"dataSet":null}}"#,
            r#"{"totalCount":0,"dataSet":[]}"#,
        ] {
            assert_eq!(page(body), Page::default(), "{body}");
        }
    }

    #[test]
    fn entries_without_a_usable_id_are_counted() {
        let long = "x".repeat(10_000);
        let body = format!(
            r#"{{"totalCount":9,"dataSet":[null,7,["a","RUNNING"],{{}},{{"instanceId":null}},{{"instanceId":""}},{{"instanceId":" \t\u2003"}},
            {{"instanceId":["a"]}},{{"instanceId":"{long}"}},{{"instanceId":"\u0000"}},{{"instanceId":"good"}}]}}"#
        );
        let page = page(&body);
        assert_eq!(page.head.unusable, 10);
        assert_eq!(page.listed(), 11);
        assert_eq!(page.entries().collect::<Vec<_>>(), [("good", "")]);
    }

    #[test]
    fn integers_are_ids_digit_for_digit() {
        let integers = ["0", "-7", "9007199254740993", "932237369560662463", "18446744073709551616"];
        let long = "123456789".repeat(20);
        for integer in integers.into_iter().chain([&*long, "-9223372036854775809"]) {
            let body =
                format!(r#"{{"totalCount":1,"dataSet":[{{"instanceId":{integer},"instanceStatus":"RUNNING"}}]}}"#);
            assert_eq!(page(&body).entries().collect::<Vec<_>>(), [(integer, "RUNNING")]);
        }
        for no_id in ["1.5", "1e17", "true", "[1]", r#""\ud800""#, &"1".repeat(257)] {
            let body = format!(r#"{{"totalCount":1,"dataSet":[{{"instanceId":{no_id}}}]}}"#);
            assert_eq!(page(&body).head.unusable, 1, "{no_id}");
        }
    }

    #[test]
    fn a_string_is_an_id_however_it_is_written() {
        let body =
            r#"{"totalCount":3,"dataSet":[{"instanceId":"7"},{"instanceId":"a\"\u00e9\\"},{"instanceId" : "b" }]}"#;
        assert_eq!(page(body).ids().collect::<Vec<_>>(), ["7", "a\"é\\", "b"]);
    }

    #[test]
    fn a_missing_status_is_an_empty_one_and_a_long_one_is_cut() {
        let (long, cut) = ("X".repeat(257), format!("{}…", "X".repeat(253)));
        let longest = &long[1..];
        for (status, expected) in [
            ("null", ""),
            ("5", ""),
            ("{}", ""),
            (r#""\u0000""#, ""),
            (&format!("\"{longest}\""), longest),
            (&format!("\"{long}\""), &cut),
        ] {
            let body = format!(r#"{{"totalCount":1,"dataSet":[{{"instanceId":"a","instanceStatus":{status}}}]}}"#);
            assert_eq!(page(&body).entries().collect::<Vec<_>>(), [("a", expected)], "{status}");
        }
    }

    #[test]
    fn texts_are_replaced_wherever_they_are() {
        let body = r#"{"totalCount":2,"dataSet":[{"instanceId":"a","instanceStatus":"RUNNING"},{"instanceId":"b"}]}"#;
        let replaced = |from: &'static str| {
            let mut page = page(body);
            page.replace_texts(|text| (text == from).then(|| "new".to_owned()));
            page
        };
        assert_eq!(replaced("a").entries().collect::<Vec<_>>(), [("new", "RUNNING"), ("b", "")]);
        assert_eq!(replaced("RUNNING").entries().collect::<Vec<_>>(), [("a", "new"), ("b", "")]);
        assert_eq!(replaced("aRUNNINGb"), page(body));
        assert_eq!(replaced("b").head, page(body).head);
    }

    #[test]
    fn an_error_body_under_200_is_a_refusal() {
        let body = br#"{"requestId":"T1","code":"REQUEST_LIMIT_EXCEEDED","message":"slow\ndown"}"#;
        let refusal = Refusal {
            code: Some("REQUEST_LIMIT_EXCEEDED".into()),
            message: Some("slow\ndown".into()),
            request_id: Some("T1".into()),
        };
        assert_eq!(read_answer(body).unwrap(), Answer::Refusal(refusal));
    }

    #[test]
    fn an_empty_listing_with_an_error_code_is_a_refusal() {
        let code_of = |body: &str| match read_answer(body.as_bytes()) {
            Ok(Answer::Refusal(refusal)) => refusal.code.unwrap(),
            other => panic!("no refusal: {other:?}: {body}"),
        };
        let long = "X".repeat(300);
        for (code, expected) in
            [(r#""NO""#, "NO"), ("500", "500"), (r#""N\u0000O""#, "N\0O"), (&format!("{long:?}"), &*long)]
        {
            for body in [
                format!(r#"{{"code":{code},"message":"x","totalCount":0,"dataSet":[]}}"#),
                format!(r#"{{"code":{code},"totalCount":0,"dataSet":null}}"#),
                format!(r#"{{"code":{code},"totalCount":7}}"#),
                format!(r#"{{"requestId":"T","response":{{"code":{code},"totalCount":0,"dataSet":[]}}}}"#),
                format!(r#"{{"error":{{"code":{code}}},"response":{{"totalCount":0,"dataSet":[]}}}}"#),
                format!(r#"{{"code":0,"response":{{"Error":{{"Code":{code}}},"totalCount":0}}}}"#),
            ] {
                assert_eq!(&*code_of(&body), expected, "{body}");
            }
        }
        let listed = r#"{"code":"NO","totalCount":1,"dataSet":[{"instanceId":"a"}]}"#;
        assert_eq!(page(listed).ids().collect::<Vec<_>>(), ["a"]);
    }

    #[test]
    fn an_empty_listing_with_a_code_that_says_success_is_an_empty_account() {
        for code in ["0", "200", r#""0""#, r#""OK""#, r#""Success""#, r#""""#, "null"] {
            let body =
                format!(r#"{{"code":{code},"message":"x","response":{{"code":{code},"totalCount":0,"dataSet":[]}}}}"#);
            assert_eq!(page(&body), Page::default(), "{body}");
        }
        assert_eq!(malformed(br#"{"code":"OK"}"#), "the body has neither totalCount nor an error code");
    }

    #[test]
    fn no_error_quotes_a_value() {
        let long = "x".repeat(10_000);
        for body in [
            format!(r#"{{"totalCount":1,"dataSet":"{long}"}}"#),
            format!(r#"{{"totalCount":"{long}","dataSet":[]}}"#),
            format!(r#"{{"response":{{"totalCount":1,"dataSet":"\n{long}"}}}}"#),
            format!(r#"{{"response":"{long}"}}"#),
            format!(r#"{{"{long}":1"#),
            format!(r#""{long}""#),
            format!(r#"{{"totalCount":{}}}"#, "1".repeat(10_000)),
        ] {
            let says = malformed(body.as_bytes());
            assert!(says.len() < 150, "{says}");
        }
    }

    #[test]
    fn half_a_surrogate_pair_costs_no_entry() {
        let status = |status: &str| {
            let body = format!(r#"{{"totalCount":1,"dataSet":[{{"instanceId":"a","instanceStatus":"{status}"}}]}}"#);
            page(&body).entries().next().unwrap().1.to_owned()
        };
        for half in [r"\ud83d", r"\ude00", r"\ud83d\ud83d"] {
            let read = status(&format!("a\\n{half}b"));
            assert!(read.contains('\u{fffd}'), "{read:?}");
            assert_eq!(read.replace('\u{fffd}', ""), "a\nb");
        }
        assert_eq!(status(r"a\ud83d\ude00b"), "a😀b");
    }

    #[test]
    fn what_is_no_answer_says_why() {
        assert_eq!(malformed(b""), "the body is empty");
        assert_eq!(malformed(b" \n<html>"), "the body is HTML, not JSON");
        assert_eq!(malformed(b"[null,3,[]]"), "the body has neither totalCount nor an error code");
        assert_eq!(malformed(b"{}"), "the body has neither totalCount nor an error code");
        assert_eq!(malformed(b"{\"response\":{}}"), "the body has neither totalCount nor an error code");
        assert_eq!(malformed(b"{\"totalCount\":1,\"x\":\"\xff\"}"), "the body is not UTF-8");
        assert_eq!(
            malformed(b"{\"totalCount\":1,\"dataSet\":[{\"instanceId\":\"a"),
            "the body is not the JSON it should be: EOF while parsing a string at line 1 column 43"
        );
        for total in ["-1", "1.5", "\"7\"", "[]"] {
            assert_eq!(
                malformed(format!(r#"{{"totalCount":{total}}}"#).as_bytes()).split(" at ").next(),
                Some("the body is not the JSON it should be: totalCount must be a non-negative integer")
            );
        }
    }

    #[test]
    fn a_deep_document_does_not_exhaust_the_stack() {
        let deep = "[".repeat(1_000_000);
        assert!(read_answer(deep.as_bytes()).is_err());
        let ignored = format!(r#"{{"totalCount":0,"x":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(page(&ignored), Page::default());
    }
}
