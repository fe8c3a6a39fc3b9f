//! The example of the documents, run.

#[path = "../examples/own_software.rs"]
mod own_software;

#[test]
fn the_example_of_the_documents_runs() {
    own_software::main();
}
