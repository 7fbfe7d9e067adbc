module github.com/libdiffusion/go-diffusion

go 1.24
