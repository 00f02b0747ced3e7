//! What the API's error codes mean, whatever HTTP status they come with (reference: Error codes).

use super::Kind;

/// Codes that decide the kind of a failure on their own, as the vendor's Terraform provider and SDKs treat them.
const KINDS: [(&str, Kind); 6] = [
    ("REQUEST_LIMIT_EXCEEDED", Kind::RateLimit),
    ("SERVICE_TEMPORARY_UNAVAILABLE", Kind::Server),
    ("INTERNAL_SERVER_ERROR", Kind::Server),
    ("REQUEST_TIMED_OUT", Kind::Server),
    ("INVALID_INSTANCE_NOT_FOUND", Kind::NotFound),
    ("OPERATION_FAILED_RESOURCE_NOT_FOUND", Kind::NotFound),
];

/// A success has no code (reference: Responses); some servers and gateways give it one of these all the same.
const SUCCESS: [&str; 4] = ["0", "200", "OK", "SUCCESS"];

const NOT_FOUND: &str = "_NOT_FOUND";

/// Whether the code, if it is one, says that the request failed.
pub(super) fn is_failure(code: &str) -> bool {
    let code = code.trim();
    !code.is_empty() && !SUCCESS.iter().any(|success| code.eq_ignore_ascii_case(success))
}

/// The kind of a code that decides it on its own.
pub(super) fn kind(code: &str) -> Option<Kind> {
    let words = in_upper_case(code);
    let is = |known: &str| words.starts_with(known) && ends_at(code, known.len());
    KINDS.iter().find(|(known, _)| is(known)).map(|&(_, kind)| kind)
}

/// Whether the code has the form `…_NOT_FOUND`.
pub(super) fn is_not_found(code: &str) -> bool {
    // A code with a `_` has its detail after the first dot; an old spelling has dots in place of every `_`.
    let code = if code.contains('_') { code.split('.').next().unwrap_or_default() } else { code };
    in_upper_case(code).match_indices(NOT_FOUND).any(|(at, _)| ends_at(code, at + NOT_FOUND.len()))
}

/// Whether nothing but a detail is left from that place on.
fn ends_at(code: &str, place: usize) -> bool {
    matches!(code.as_bytes().get(place), None | Some(b'.'))
}

/// `Invalid.Instance.Not.Found` as today's codes are written, byte for byte as long.
fn in_upper_case(code: &str) -> String {
    code.to_ascii_uppercase().replace('.', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_known_in_every_spelling_and_with_a_detail() {
        for (code, expected) in [
            ("REQUEST_LIMIT_EXCEEDED", Some(Kind::RateLimit)),
            ("REQUEST_LIMIT_EXCEEDED.Account", Some(Kind::RateLimit)),
            ("request_limit_exceeded.account.minute", Some(Kind::RateLimit)),
            ("Request.Limit.Exceeded", Some(Kind::RateLimit)),
            ("Request.Limit.Exceeded.Account", Some(Kind::RateLimit)),
            ("REQUEST_LIMIT_EXCEEDED_ACCOUNT", None),
            ("service_temporary_unavailable", Some(Kind::Server)),
            ("Internal.Server.Error", Some(Kind::Server)),
            ("REQUEST_TIMED_OUT.upstream", Some(Kind::Server)),
            ("INTERNAL_SERVER_ERROR.BACKEND_NOT_FOUND", Some(Kind::Server)),
            ("OPERATION_FAILED.RESOURCE_NOT_FOUND", Some(Kind::NotFound)),
            ("Invalid.Instance.Not.Found", Some(Kind::NotFound)),
            ("OPERATION_DENIED.REQUEST_TIMED_OUT", None),
            ("ÉREQUEST_TIMED_OUT", None),
            ("", None),
        ] {
            assert_eq!(kind(code), expected, "{code}");
        }
    }

    #[test]
    fn the_part_before_the_dot_says_whether_something_is_gone() {
        for code in [
            "INVALID_ZONE_NOT_FOUND",
            "INVALID_ZONE_NOT_FOUND.HKG-A",
            "invalid_vm_not_found.id_7",
            "Invalid.Zone.Not.Found",
            "Invalid.Zone.Not.Found.Detail",
        ] {
            assert!(is_not_found(code), "{code}");
        }
        for code in ["INVALID_PARAMETER.ZONE_NOT_FOUND", "ZONE_NOT_FOUND_HERE", "NOT_FOUND", "Not.Found", "", "."] {
            assert!(!is_not_found(code), "{code}");
        }
    }
}
