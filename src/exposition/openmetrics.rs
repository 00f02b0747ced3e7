//! The text format → OpenMetrics 1.0.0, which differs from it in a few places.

use std::borrow::Cow;

/// The text format as OpenMetrics wants it: a counter's family without `_total`, bounds as floats, an end.
pub(crate) fn from_text(text: &str) -> String {
    let mut open = String::with_capacity(text.len() + 200);
    for line in text.lines() {
        match line.strip_prefix("# ") {
            Some(comment) => {
                let mut words = comment.splitn(3, ' ');
                let mut word = || words.next().unwrap_or_default();
                let (keyword, name, rest) = (word(), word(), word());
                let family = name.strip_suffix("_total").unwrap_or(name);
                open.extend(["# ", keyword, " ", family, " ", rest]);
            }
            None => open.push_str(&with_float_bound(line)),
        }
        open.push('\n');
    }
    open.push_str("# EOF\n");
    open
}

/// `le="1"` as `le="1.0"`: OpenMetrics has one way to write a float.
fn with_float_bound(line: &str) -> Cow<'_, str> {
    let bound = line.find("le=\"").map(|at| at + 4).filter(|&at| line[..at].contains("_bucket{"));
    let is_whole = |at: usize| {
        let digits = line[at..].split('"').next().unwrap_or_default();
        (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(at + digits.len())
    };
    match bound.and_then(is_whole) {
        Some(end) => format!("{}.0{}", &line[..end], &line[end..]).into(),
        None => line.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_differs_in_families_bounds_and_end() {
        let text = "# HELP a_total b_total.\n# TYPE a_total counter\na_total{x=\"le=\\\"1\"} 1\n\
                    # HELP h H.\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"0.5\"} 1\nh_bucket{le=\"+Inf\"} 2\n";
        let open = "# HELP a b_total.\n# TYPE a counter\na_total{x=\"le=\\\"1\"} 1\n\
                    # HELP h H.\n# TYPE h histogram\nh_bucket{le=\"1.0\"} 2\nh_bucket{le=\"0.5\"} 1\nh_bucket{le=\"+Inf\"} 2\n# EOF\n";
        assert_eq!(from_text(text), open);
    }
}
