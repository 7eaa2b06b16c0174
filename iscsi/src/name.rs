//! iSCSI names (RFC 7143 §4.2.7): `iqn.`, `eui.` and `naa.`, in the one form in which they are compared.

use std::fmt;

/// The longest name, in bytes (RFC 7143 §4.2.7.2).
pub const NAME_BYTES_MAX: usize = 223;

/// An iSCSI name: valid and in lower case, so that equal names are equal. What is not done of RFC 3722's
/// preparation is the compatibility decomposition of characters beyond ASCII: such names must match as written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IscsiName(Box<str>);

/// A text that is no iSCSI name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// Over [`NAME_BYTES_MAX`].
    TooLong,
    /// Neither `iqn.` nor `eui.` nor `naa.`.
    Type,
    /// After `iqn.`: a year, a month and the reversed name of a domain.
    Authority,
    /// After `eui.`: 16 hexadecimal digits; after `naa.`: 16 or 32.
    Digits,
    /// A character that names don't have.
    Character(char),
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::TooLong => write!(f, "longer than {NAME_BYTES_MAX} bytes"),
            NameError::Type => write!(f, "begins with neither iqn., eui. nor naa."),
            NameError::Authority => write!(f, "iqn. is not followed by YYYY-MM. and a reversed domain name"),
            NameError::Digits => write!(f, "eui. takes 16 hexadecimal digits, naa. takes 16 or 32"),
            NameError::Character(character) => write!(f, "has the character {character:?}"),
        }
    }
}

impl IscsiName {
    /// Checks a name and puts it in lower case (RFC 3722 §4: names are compared without case). An underscore is
    /// let through: it is not allowed, but many hosts have it.
    ///
    /// # Errors
    /// [`NameError`].
    pub fn parse(name: &str) -> Result<IscsiName, NameError> {
        if name.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong);
        }
        let allowed = |character: char| character.is_alphanumeric() || "-.:_".contains(character);
        if let Some(character) = name.chars().find(|&character| !allowed(character)) {
            return Err(NameError::Character(character));
        }
        let name = name.to_lowercase();
        if let Some(rest) = name.strip_prefix("iqn.") {
            let Some((date, domain)) = rest.split_once('.') else { return Err(NameError::Authority) };
            let &[_, _, _, _, b'-', _, _] = date.as_bytes() else { return Err(NameError::Authority) };
            let digits = date.bytes().filter(u8::is_ascii_digit).count();
            if digits != 6 || domain.is_empty() || domain.starts_with(['.', ':']) {
                return Err(NameError::Authority);
            }
        } else if let Some(digits) = name.strip_prefix("eui.") {
            check_digits(digits, &[16])?;
        } else if let Some(digits) = name.strip_prefix("naa.") {
            check_digits(digits, &[16, 32])?;
        } else {
            return Err(NameError::Type);
        }
        if name.len() > NAME_BYTES_MAX {
            return Err(NameError::TooLong); // a few letters are longer in lower case
        }
        Ok(IscsiName(name.into_boxed_str()))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn check_digits(digits: &str, lengths: &[usize]) -> Result<(), NameError> {
    let fits = lengths.contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if fits { Ok(()) } else { Err(NameError::Digits) }
}

impl fmt::Display for IscsiName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Goal: names that real hosts have are taken, in one form; others are refused for the right reason.
    #[test]
    fn names() {
        for (name, normal) in [
            ("iqn.1998-01.com.vmware:ESX-7-1A2B3C4D", "iqn.1998-01.com.vmware:esx-7-1a2b3c4d"),
            ("iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test-2", ""),
            ("iqn.1993-08.org.debian:01:5e4b1f2c3a", ""),
            ("iqn.1991-05.com.microsoft:host_1.domain.local", ""),
            ("iqn.2026-11.io.pollux", ""),
            ("eui.02004567A425678D", "eui.02004567a425678d"),
            ("naa.52004567BA64678D", "naa.52004567ba64678d"),
            ("naa.62004567BA64678D0123456789ABCDEF", "naa.62004567ba64678d0123456789abcdef"),
        ] {
            assert_eq!(
                IscsiName::parse(name).unwrap().as_str(),
                if normal.is_empty() { name } else { normal }
            );
        }
        let long = format!("iqn.2026-11.io:{}", "x".repeat(209));
        for (name, error) in [
            ("", NameError::Type),
            ("iqn", NameError::Type),
            ("host", NameError::Type),
            ("iqn.", NameError::Authority),
            ("iqn.com.example", NameError::Authority),
            ("iqn.2026-1a.com", NameError::Authority),
            ("iqn.2026-11.", NameError::Authority),
            ("iqn.2026-11.:x", NameError::Authority),
            ("eui.123", NameError::Digits),
            ("naa.5200456700000000a", NameError::Digits),
            ("iqn.2026-11.io pollux", NameError::Character(' ')),
            ("iqn.2026-11.io\n", NameError::Character('\n')),
            (&long, NameError::TooLong),
        ] {
            assert_eq!(IscsiName::parse(name), Err(error), "{name}");
        }
    }

    proptest! {
        /// Goal: nothing panics, and the form is stable. Method: any text behind any type.
        #[test]
        fn any_name(kind in "(iqn\\.|eui\\.|naa\\.|iqn\\.2026-11\\.)?", rest: String) {
            if let Ok(name) = IscsiName::parse(&(kind + &rest)) {
                prop_assert_eq!(IscsiName::parse(name.as_str()), Ok(name));
            }
        }
    }
}
