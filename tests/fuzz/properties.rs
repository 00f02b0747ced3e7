//! What holds of every body the API, or something in between, may send, of every web config and of every request.
//!
//! Shared by the fuzz targets and by `tests/corpus.rs`. The oracle is `serde_json::Value` and the rules of the
//! reference written out once more: it must not know how `wire` reads a body.

use hyper::Method;
use hyper::header::{ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderValue};
use serde_json::Value;
use zenlayer_exporter::api::error::clean_foreign_text;
use zenlayer_exporter::api::wire::{Answer, InfoPage, Page, Refusal, read_answer, read_infos, read_refusal};
use zenlayer_exporter::http::{Format, Route, accepts_gzip, route};
use zenlayer_exporter::web_config;

/// The longest id or status that may become a label, in bytes.
const LONGEST_LABEL: usize = 256;
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();
/// The longest text of a refusal, in characters: 300 and the mark of a cut.
const LONGEST_REFUSAL: usize = 301;
/// What is kept of a text of a refusal, in bytes.
const LONGEST_WORD: usize = 4096;

/// Checks what is made of the body of a successful answer.
///
/// # Panics
/// When a property does not hold.
pub fn page(body: &[u8]) {
    let answer = read_answer(body);
    match &answer {
        Ok(Answer::Page(page)) => check_page(page),
        Ok(Answer::Refusal(refusal)) => {
            check_refusal(refusal);
            assert_eq!(read_refusal(body).ok().as_ref(), Some(refusal), "a refusal is the same under any HTTP status");
            assert_ne!(refusal.code.as_deref(), None, "an answer without a code is no refusal");
        }
        Err(_) => {}
    }
    let marked = [BYTE_ORDER_MARK, body].concat();
    match (&answer, read_answer(&marked)) {
        (Ok(Answer::Page(page)), Ok(Answer::Page(same))) => {
            assert_eq!(page, &same, "a byte order mark changes nothing");
        }
        (Ok(Answer::Refusal(refusal)), Ok(Answer::Refusal(same))) => assert_eq!(refusal, &same),
        (Ok(answer), other) => panic!("{answer:?} is {other:?} after a byte order mark"),
        (Err(_), _) => {}
    }
    // A body can be too deep for a `Value`, or have a number out of its range, where the reader skips it unread.
    let Ok(document) = serde_json::from_slice::<Value>(body) else { return };
    if let Ok(Answer::Page(page)) = &answer {
        check_against(page, &document);
    }
    // Written again, so that a key given twice, which the reader may reject, is given once.
    let document_body = document.to_string();
    if is_page(&document) && !is_failure(&document) {
        match read_answer(document_body.as_bytes()) {
            Ok(Answer::Page(page)) => check_against(&page, &document),
            other => panic!("a page was not read as one: {other:?}: {document_body}"),
        }
    }
}

/// Checks where a request is led and in which form it is answered: its method, path, `Accept` and `Accept-Encoding`, a line
/// each.
///
/// # Panics
/// When a property does not hold.
pub fn router(request: &[u8]) {
    let mut lines = request.splitn(4, |&byte| byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let (method, path, accept, coding) = (line(), line(), line(), line());
    if let (Ok(method), Ok(path)) = (Method::from_bytes(method), std::str::from_utf8(path)) {
        let is_read = method == Method::GET || method == Method::HEAD;
        let known =
            [("/", Route::Home), ("/m", Route::Metrics), ("/healthz", Route::Healthy), ("/readyz", Route::Ready)];
        let expected = match known.iter().find(|(known, _)| *known == path) {
            Some((_, found)) if is_read => *found,
            Some(_) => Route::MethodNotAllowed,
            None => Route::NotFound,
        };
        assert_eq!(route(&method, path, "/m"), expected, "{method} {path}");
    }
    let value = |bytes| HeaderValue::from_bytes(bytes).ok();
    let mentions = |bytes: &[u8], word: &str| String::from_utf8_lossy(bytes).to_ascii_lowercase().contains(word);
    if let Some(accept_value) = value(accept) {
        let format = Format::preferred(&HeaderMap::from_iter([(ACCEPT, accept_value)]));
        assert!(
            format == Format::Text || mentions(accept, "application/openmetrics-text"),
            "nobody asked for {format:?}"
        );
    }
    if let Some(coding_value) = value(coding) {
        let is_zipped = accepts_gzip(&HeaderMap::from_iter([(ACCEPT_ENCODING, coding_value)]));
        assert!(!is_zipped || mentions(coding, "gzip") || mentions(coding, "*"), "nobody asked for gzip");
        let refused = [b"gzip;q=0,", coding].concat();
        if let Some(refused) = value(&refused) {
            let is_zipped = accepts_gzip(&HeaderMap::from_iter([(ACCEPT_ENCODING, refused)]));
            assert!(!is_zipped, "gzip was refused");
        }
    }
}

/// Checks what is made of the body of a successful answer that tells more than statuses.
///
/// # Panics
/// When a property does not hold.
pub fn info(body: &[u8]) {
    let Ok(Answer::Page(page)) = read_infos(body) else { return };
    for entry in page.entries() {
        assert!(!entry.id.is_empty(), "an empty id is not usable");
        for label in [entry.id, entry.name, entry.tag("env")].iter().chain(&entry.shared) {
            assert!(label.len() <= LONGEST_LABEL, "{} bytes are too long for a label", label.len());
            assert!(!label.contains('\0'), "NUL in {label:?}");
        }
    }
    if let Ok(document) = serde_json::from_slice::<Value>(body) {
        check_infos_against(&page, &document);
    }
}

/// Checks what is made of the body of a refusal.
///
/// # Panics
/// When a property does not hold.
pub fn refusal(body: &[u8]) {
    let Ok(refusal) = read_refusal(body) else { return };
    check_refusal(&refusal);
    let marked = [BYTE_ORDER_MARK, body].concat();
    assert_eq!(read_refusal(&marked).ok().as_ref(), Some(&refusal), "a byte order mark changes nothing");
    let Ok(document) = serde_json::from_slice::<Value>(body) else { return };
    let words = [("code", &refusal.code), ("message", &refusal.message), ("requestId", &refusal.request_id)];
    for (field, text) in words {
        // Of several spellings, as in `code` and `Code`, any may be taken.
        let spellings = document.as_object().into_iter().flatten().filter(|(key, _)| key.eq_ignore_ascii_case(field));
        let sent = document[field].as_str().filter(|_| spellings.count() == 1);
        if let Some(sent) = sent.filter(|sent| field != "code" || is_error_code(sent)) {
            let kept = &sent[..sent.floor_char_boundary(LONGEST_WORD)];
            assert_eq!(text.as_deref(), Some(kept), "the beginning of {field} is as it was sent");
        }
    }
    // A body that is cut off, or goes on after its end, keeps what came before.
    let goes_on = [body, b"}<html>"].concat();
    assert_eq!(read_refusal(&goes_on).ok().as_ref(), Some(&refusal), "what follows the body changes nothing");
    if let Ok(cut) = read_refusal(&body[..body.len() / 2]) {
        check_refusal(&cut);
    }
}

/// Checks what is made of the text of a web config, whose files hold nothing of use.
///
/// # Panics
/// When a property does not hold.
pub fn web_config(text: &[u8]) {
    let read = || web_config::parse(text, &mut |name| Err(format!("{name} cannot be read")));
    let says = |key: &str| text.windows(key.len()).any(|window| window == key.as_bytes());
    match read() {
        Ok(settings) => {
            assert!(!settings.has_tls(), "TLS without a certificate");
            assert!(!settings.has_users() || says("$2"), "users without a hash");
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty(), "something is wrong, and nothing is said");
            for mistake in &mistakes {
                assert!(!mistake.contains(char::is_control), "a control character in {mistake:?}");
            }
            assert_eq!(read().err(), Some(mistakes), "the same text is wrong in the same way");
        }
    }
}

/// A failure whose payload is left at its defaults: a usable code, and nothing listed.
fn is_failure(document: &Value) -> bool {
    let payload = if document["response"].is_object() { &document["response"] } else { document };
    let lists_nothing = payload["dataSet"].as_array().is_none_or(Vec::is_empty);
    lists_nothing && has_error_code(document)
}

fn has_error_code(value: &Value) -> bool {
    value.as_object().into_iter().flatten().any(|(key, value)| match &*key.to_ascii_lowercase() {
        "code" => {
            value.as_str().is_some_and(is_error_code) || value.as_i64().is_some_and(|code| ![0, 200].contains(&code))
        }
        "response" | "error" => has_error_code(value),
        _ => false,
    })
}

fn is_error_code(code: &str) -> bool {
    !["", "0", "200", "OK", "SUCCESS"].contains(&&*code.trim().to_ascii_uppercase())
}

fn check_page(page: &Page) {
    for (id, status) in page.entries() {
        assert!(!id.is_empty(), "an empty id is not usable");
        for label in [id, status] {
            assert!(label.len() <= LONGEST_LABEL, "{} bytes are too long for a label", label.len());
            assert!(!label.contains('\0'), "NUL in {label:?}");
        }
    }
}

fn check_refusal(Refusal { code, message, request_id }: &Refusal) {
    for text in [code, message, request_id].into_iter().flatten() {
        let text = clean_foreign_text(text);
        assert!(!text.contains(['\u{ad}', '\u{200b}', '\u{2028}', '\u{202e}', '\u{2066}', '\u{feff}']), "{text:?}");
        assert!(!text.contains(char::is_control), "a control character in {text:?}");
        assert!(text.chars().count() <= LONGEST_REFUSAL, "too long for a log: {text:?}");
    }
}

/// Compares a page with the oracle's reading of the same document.
fn check_against(page: &Page, document: &Value) {
    let payload = payload(document);
    assert_eq!(Some(page.head.total_count), payload["totalCount"].as_u64(), "totalCount of {document}");
    let listed = payload["dataSet"].as_array().map_or(&[][..], Vec::as_slice);
    assert_eq!(page.entries().len() + page.head.unusable, listed.len(), "the number listed in {document}");
    if has_large_integers(listed) {
        return;
    }
    let expected = listed.iter().filter_map(|entry| Some((id(&entry["instanceId"])?, shown(&entry["instanceStatus"]))));
    let expected: Vec<_> = expected.collect();
    assert!(page.entries().eq(expected.iter().map(|(id, status)| (&**id, &**status))), "the entries of {document}");
}

/// Compares a page of infos with the oracle's reading of the same document.
fn check_infos_against(page: &InfoPage, document: &Value) {
    let payload = payload(document);
    assert_eq!(Some(page.head.total_count), payload["totalCount"].as_u64(), "totalCount of {document}");
    let listed = payload["dataSet"].as_array().map_or(&[][..], Vec::as_slice);
    if has_large_integers(listed) {
        return;
    }
    let usable: Vec<_> = listed.iter().filter(|entry| id(&entry["instanceId"]).is_some()).collect();
    assert_eq!(page.entries().len(), usable.len(), "the usable entries of {document}");
    assert_eq!(page.entries().len() + page.head.unusable, listed.len(), "the number listed in {document}");
    for (entry, told) in page.entries().zip(usable) {
        let fields = ["zoneId", "instanceType", "imageName", "instanceChargeType", "resourceGroupName"];
        assert_eq!(Some(entry.id.to_owned()), id(&told["instanceId"]), "{told}");
        assert_eq!(entry.name, shown(&told["instanceName"]), "{told}");
        assert_eq!(entry.shared.map(str::to_owned), fields.map(|field| shown(&told[field])), "{told}");
        let tags = told["tags"]["tags"].as_array().map_or(&[][..], Vec::as_slice);
        let last = tags.iter().rfind(|tag| tag["key"] == "env");
        assert_eq!(entry.tag("env"), last.map_or(String::new(), |tag| shown(&tag["value"])), "{told}");
        let time = told["expiredTime"].as_str().filter(|_| told["instanceChargeType"] != "POSTPAID");
        assert!(entry.expires.is_none() || time.is_some_and(|time| time.ends_with('Z')), "{told}");
    }
}

/// An ID, where there is one: a label, or an integer as it is written.
fn id(value: &Value) -> Option<String> {
    let integer = || value.as_number().filter(|number| !number.is_f64()).map(ToString::to_string);
    label(value).map(str::to_owned).or_else(integer)
}

/// Whether an ID may be an integer of which the oracle, with floats, knows only the first digits.
fn has_large_integers(listed: &[Value]) -> bool {
    listed.iter().any(|entry| entry["instanceId"].is_f64())
}

/// A text as a label shows it: at most so long, the beginning of a longer one.
fn shown(value: &Value) -> String {
    let text = value.as_str().filter(|text| !text.contains('\0')).unwrap_or_default();
    if text.len() <= LONGEST_LABEL {
        return text.to_owned();
    }
    let fits = |&end: &usize| text.is_char_boundary(end);
    let end = (0..=LONGEST_LABEL - '…'.len_utf8()).rev().find(fits).expect("0 is a boundary");
    format!("{}…", &text[..end])
}

/// What holds `totalCount` and `dataSet`: `response`, or the document itself.
fn payload(document: &Value) -> &Value {
    if document["response"].is_object() { &document["response"] } else { document }
}

fn label(value: &Value) -> Option<&str> {
    value
        .as_str()
        .filter(|text| text.len() <= LONGEST_LABEL && !text.contains('\0'))
        .filter(|text| !text.trim().is_empty())
}

/// Whether the reference lets the document be a page, whatever else is in it.
fn is_page(document: &Value) -> bool {
    let well_formed = |payload: &Value| {
        let entries = &payload["dataSet"];
        let objects = |entries: &Vec<Value>| entries.iter().all(|entry| entry.is_object() || entry.is_null());
        (payload["totalCount"].is_null() || payload["totalCount"].is_u64())
            && (entries.is_null() || entries.as_array().is_some_and(objects))
    };
    let response = &document["response"];
    document.is_object()
        && (response.is_null() || response.is_object())
        && well_formed(document)
        && well_formed(response)
        && payload(document)["totalCount"].is_u64()
}
