//! What fuzzing found, and what it starts from: replayed, so that crashes stay fixed. The corpus of ring
//! blocks is replayed beside the code that walks them.

#[path = "../../fuzz/src/lib.rs"]
mod targets;

use std::path::Path;

fn replay(target: &str, run: fn(&[u8]), least: usize) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(folder).expect("the corpus is in the tree") {
        let path = entry.expect("the folder can be read").path();
        eprintln!("{}", path.display());
        run(&std::fs::read(path).expect("the file can be read"));
        count += 1;
    }
    assert!(count >= least, "{count} inputs of {target}");
}

#[test]
fn every_frame_of_the_fuzz_corpus_is_parsed() {
    replay("parser", targets::parser, 30);
}

#[test]
fn every_session_of_the_fuzz_corpus_is_decoded_or_refused() {
    replay("wire_decoder", targets::wire_decoder, 30);
}

#[test]
fn every_capture_file_of_the_fuzz_corpus_is_read() {
    replay("capture_file", targets::capture_file, 8);
}
