//! A string that never prints itself.
//!
//! Invariant: the text leaves only through [`Secret::expose`], so a search for that word finds every use.
//! It must not know what the secret is for.

use std::fmt;

use zeroize::Zeroizing;

/// An access key password or a token. Printed it is `[redacted]`; dropped it is overwritten with zeros.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps `text`, less the white space around it: files end in a newline, pasted keys in a space.
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.trim().to_owned()))
    }

    /// The text itself, for the one place that signs or sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret;

    #[test]
    fn is_redacted_however_it_is_printed() {
        let secret = Secret::new("Gu5t9xGARNpq86cd98joQYCN3");
        let printed = format!("{secret} {secret:?} {secret:#?} {:?}", Some(&secret));
        assert_eq!(printed, "[redacted] [redacted] [redacted] Some([redacted])");
    }

    #[test]
    fn loses_the_newline_of_its_file() {
        assert_eq!(Secret::new("key\r\n").expose(), "key");
        assert!(Secret::new(" \n").is_empty());
    }
}
