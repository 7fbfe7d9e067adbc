//! Builds the C++ shim over libtorch, generates the header, and tells the linker what the shared library needs.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    header(&out.join("diffusion.h"));
    let libtorch =
        PathBuf::from(env::var_os("LIBTORCH").expect(
            "LIBTORCH must name a libtorch 2.11.0 folder: `make libtorch` fetches one (see README.md)",
        ));
    shim(&libtorch);
    kernels();
    link(&libtorch);
}

/// Generates the C header from src/capi. `make header` copies it to include/; tests/header.rs compares the two.
fn header(path: &Path) {
    println!("cargo:rerun-if-changed=cbindgen.toml");
    println!("cargo:rerun-if-changed=src/capi");
    let config = cbindgen::Config::from_file("cbindgen.toml").expect("cbindgen.toml is valid");
    let mut builder = cbindgen::Builder::new().with_config(config);
    // The order here is the order in the header.
    for file in ["types", "status", "info", "lifecycle", "inference", "jobs", "training", "parameters"] {
        builder = builder.with_src(format!("src/capi/{file}.rs"));
    }
    let mut text = Vec::new();
    builder.generate().expect("src/capi can be parsed").write(&mut text);
    let text = String::from_utf8(text).expect("cbindgen writes UTF-8");
    // Rust's heading for what a caller answers for means little to a C programmer.
    let text = text.replace(" * # Safety\n * ", " * Pointers: ");
    std::fs::write(path, text).expect("OUT_DIR is writable");
    println!("cargo:rustc-env=DIFFUSION_GENERATED_HEADER={}", path.display());
}

/// Has the C++ parts compiled with the sanitizers that DIFFUSION_SANITIZE names, such as "address,undefined"
/// (scripts/build_sanitized.sh).
fn sanitize(build: &mut cc::Build) {
    println!("cargo:rerun-if-env-changed=DIFFUSION_SANITIZE");
    if let Ok(names) = env::var("DIFFUSION_SANITIZE") {
        build
            .flag(format!("-fsanitize={names}"))
            .flag("-fno-sanitize-recover=all")
            // Needs the C++ runtime in a C program.
            .flag("-fno-sanitize=vptr")
            .flag("-fno-omit-frame-pointer")
            .flag("-g1");
    }
}

/// What libtorch has and tch lacks (src/torch/shim.cpp, gpu.cpp).
fn shim(libtorch: &Path) {
    println!("cargo:rerun-if-changed=src/torch");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let mut build = cc::Build::new();
    sanitize(&mut build);
    build
        .cpp(true)
        .pic(true)
        .std("c++17")
        .warnings(true)
        .include("src/torch")
        // Before a CUDA toolkit's own, where there is one.
        .flag("-isystemsrc/torch/cuda_names")
        .flag(format!("-isystem{}", libtorch.join("include").display()))
        .flag(format!("-isystem{}", libtorch.join("include/torch/csrc/api/include").display()))
        .flag("-fvisibility=hidden")
        .file("src/torch/shim.cpp")
        .file("src/torch/training_ops.cpp")
        .file("src/torch/gpu.cpp")
        .compile("diffusion_shim");
}

/// The inference plan (src/kernels): the kernels once for each instruction set, the rest for any processor.
fn kernels() {
    println!("cargo:rerun-if-changed=src/kernels");
    let compiler = || {
        let mut build = cc::Build::new();
        build.cpp(true).pic(true).std("c++17").warnings(true).opt_level(3).flag("-fvisibility=hidden");
        sanitize(&mut build);
        build
    };
    let sets: [(&str, &[&str]); 3] = [
        (
            "avx512",
            &["-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mfma", "-mprefer-vector-width=512"],
        ),
        ("avx2", &["-mavx2", "-mfma"]),
        ("portable", &[]),
    ];
    for (name, flags) in sets {
        let mut build = compiler();
        for flag in flags {
            build.flag(flag);
        }
        build
            .flag("-ffp-contract=fast")
            .define("KERNELS", name)
            .file("src/kernels/kernels.cpp")
            .file("src/kernels/training_kernels.cpp")
            .compile(&format!("diffusion_kernels_{name}"));
    }
    compiler()
        .flag("-fopenmp")
        .file("src/kernels/dispatch.cpp")
        .file("src/kernels/plan.cpp")
        .file("src/kernels/training.cpp")
        .compile("diffusion_plan");
}

fn link(libtorch: &Path) {
    let lib = libtorch.join("lib");
    println!("cargo:rustc-link-search=native={}", lib.display());
    println!("cargo:rustc-link-lib=dylib=torch_cpu");
    println!("cargo:rustc-link-lib=dylib=c10");
    // The same libgomp that libtorch_cpu.so needs.
    println!("cargo:rustc-link-lib=dylib=gomp");
    let version = env::var("CARGO_PKG_VERSION_MAJOR").expect("cargo sets CARGO_PKG_VERSION_MAJOR");
    for argument in [
        // libtorch_cuda must never be NEEDED: it is opened when CUDA is asked for, so that one build serves both.
        "--as-needed".to_owned(),
        format!("-soname,libdiffusion.so.{version}"),
        // torch-sys would otherwise export symbols of its own.
        "--exclude-libs,ALL".to_owned(),
        // An exception's text is copied by ours, which does not fail (src/torch/shim.cpp).
        "--wrap=strdup".to_owned(),
        // Threads and thread-locals outlive a host's dlclose.
        "-z,nodelete".to_owned(),
        // A released library finds libtorch beside itself, a freshly built one where it was built against.
        "-rpath,$ORIGIN".to_owned(),
    ] {
        println!("cargo:rustc-cdylib-link-arg=-Wl,{argument}");
    }
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
