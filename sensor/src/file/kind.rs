//! Names files that are no captures of ours, by how they begin.

/// What else a file that begins so is, as the end of an error message; nothing if it is not known.
///
/// Source: RFC 1952 (gzip), RFC 8878 (zstd), the file formats of xz, bzip2, lz4 and zip, RFC 1761
/// (snoop), and `magic` of file(1) for the captures of other programs.
pub(super) fn remark(head: &[u8]) -> &'static str {
    match head {
        [] => "; it is empty",
        [0x1f, 0x8b, ..] => ", as what gzip compressed does: uncompress it first",
        [0x28, 0xb5, 0x2f, 0xfd] => ", as what zstd compressed does: uncompress it first",
        [0xfd, b'7', b'z', b'X'] => ", as what xz compressed does: uncompress it first",
        [b'B', b'Z', b'h', _] => ", as what bzip2 compressed does: uncompress it first",
        [0x04, 0x22, 0x4d, 0x18] => ", as what lz4 compressed does: uncompress it first",
        [b'P', b'K', 3, 4] => ", as a zip archive does: unpack it first",
        b"snoo" => ", as a snoop capture does: convert it with editcap first",
        b"GMBU" | b"RTSS" => ", as a Network Monitor capture does: convert it with editcap first",
        b"TRSN" => ", as a Sniffer capture does: convert it with editcap first",
        _ => "",
    }
}
