//go:build diffusion_link

package diffusion

// linked says whether the system's loader has brought the library with the program: then none is opened.
const linked = true
