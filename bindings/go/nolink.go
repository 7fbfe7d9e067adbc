//go:build !diffusion_link

package diffusion

// linked: see link.go.
const linked = false
