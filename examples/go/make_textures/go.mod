module make_textures

go 1.24

require github.com/libdiffusion/go-diffusion v0.0.0

// The binding of this checkout.
replace github.com/libdiffusion/go-diffusion => ../../../bindings/go
