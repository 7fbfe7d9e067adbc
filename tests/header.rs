//! The checked-in headers are what cbindgen makes of src/capi today; `make header` renews them.

#[test]
fn the_header_is_up_to_date() {
    let generated = std::fs::read_to_string(env!("DIFFUSION_GENERATED_HEADER")).unwrap();
    for path in ["include/diffusion.h", "bindings/go/diffusion.h"] {
        let kept =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/").to_owned() + path).unwrap();
        let line = generated.lines().zip(kept.lines()).position(|(a, b)| a != b);
        assert!(
            generated == kept,
            "{path} differs from src/capi at line {:?}: run `make header`",
            line.map(|i| i + 1)
        );
    }
}
