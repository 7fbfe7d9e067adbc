module consumer

go 1.24

require github.com/libdiffusion/go-diffusion v0.0.0

// In the checkout; tests/install/run.sh has its copy use the one that was unpacked.
replace github.com/libdiffusion/go-diffusion => ../../../bindings/go
