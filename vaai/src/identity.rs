//! Who a logical unit is: vendor, product and an NAA id that is nobody else's (docs/decisions/0005).

/// T10 VENDOR IDENTIFICATION. Hosts match rules on it: never change it.
pub const VENDOR: &[u8; 8] = b"POLLUX  ";

/// PRODUCT IDENTIFICATION, the same for every unit: ESXi copies between two units only if theirs are equal.
pub const PRODUCT: &[u8; 16] = b"VIRTUAL-DISK    ";

/// PRODUCT REVISION LEVEL: major and minor version, as far as four characters go.
pub const REVISION: [u8; 4] = revision(env!("CARGO_PKG_VERSION"));

/// The IEEE company id field of our NAA ids. Its first octet ends in 2h (administratively assigned, IEEE 802c),
/// so it is in the locally administered half that no registered OUI can come from.
pub const NAA_OUI: [u8; 3] = [0x72, 0x50, 0x78];

/// A logical unit's NAA IEEE Registered Extended identifier (SPC-4 §7.8.6.6.5): 6h, [`NAA_OUI`], then 36 bits and 64
/// bits of the unit's stored 16-byte id. Of a random UUID (version 4) that takes bytes 0 to 3 and the upper
/// half of byte 4, and bytes 8 to 15: 98 random bits, and none of the version.
pub fn naa(id: &[u8; 16]) -> [u8; 16] {
    let mut naa = [0; 16];
    let [a, b, c] = NAA_OUI;
    naa[0] = 0x60 | a >> 4;
    naa[1] = a << 4 | b >> 4;
    naa[2] = b << 4 | c >> 4;
    naa[3] = c << 4 | id[0] >> 4;
    for at in 4..8 {
        naa[at] = id[at - 4] << 4 | id[at - 3] >> 4;
    }
    naa[8..].copy_from_slice(&id[8..]);
    naa
}

const fn revision(version: &str) -> [u8; 4] {
    let version = version.as_bytes();
    let mut revision = [b' '; 4];
    let mut at = 0;
    let mut dots = 0;
    while at < revision.len() && at < version.len() {
        dots += (version[at] == b'.') as u8;
        if dots == 2 {
            break;
        }
        revision[at] = version[at];
        at += 1;
    }
    revision
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the layout, nibble by nibble. Method: an id whose nibbles count up.
    #[test]
    fn naa_takes_the_nibbles_the_decision_names() {
        let id =
            [0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF, 0xFE, 0xDC, 0xBA, 0x98, 0x76, 0x54, 0x32, 0x10];
        assert_eq!(
            naa(&id),
            [0x67, 0x25, 0x07, 0x80, 0x12, 0x34, 0x56, 0x78, 0xFE, 0xDC, 0xBA, 0x98, 0x76, 0x54, 0x32, 0x10]
        );
    }

    /// Goal: the patch version stays out.
    #[test]
    fn revision_is_major_and_minor() {
        assert_eq!(&revision("0.1.0"), b"0.1 ");
        assert_eq!(&revision("12.3.45"), b"12.3");
        assert_eq!(&revision("1"), b"1   ");
    }

    /// Goal: the company id is locally administered, individual, and in the administratively assigned quadrant.
    #[test]
    fn company_id_is_nobodys() {
        assert_eq!(NAA_OUI[0] & 0x0F, 0b0010);
    }
}
