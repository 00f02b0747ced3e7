//! A number and its noun, as in `1 instance` and `2 instances`.

use std::fmt::Display;

/// The number with the noun, which gets an `s` unless there is exactly one.
pub fn counted<N: Display + PartialEq + From<u8> + Copy>(count: N, noun: &str) -> String {
    let ending = if count == N::from(1) { "" } else { "s" };
    format!("{count} {noun}{ending}")
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn only_one_is_singular() {
        assert_eq!(
            [0_u64, 1, 2].map(|count| counted(count, "named instance")),
            ["0 named instances", "1 named instance", "2 named instances"]
        );
        assert_eq!(counted(1_usize, "ID"), "1 ID");
    }
}
