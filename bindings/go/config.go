package diffusion

// MaxLevels is the most levels that a U-Net may have: the length of Config.HiddenDims.
const MaxLevels = 8

// Config is what a Process is to be. Begin with DefaultConfig or CIFAR10Config and change what you need.
type Config struct {
	ImageSize  int   // height and width in pixels, 1..=4096; a multiple of 2^(len(HiddenDims) - 1). Default 32
	Channels   int   // 1 gray, 3 RGB, 4 RGBA, or any count in 1..=64. Default 3
	HiddenDims []int // channels of each U-Net level, from full resolution down; each at most 8192. Default 64, 128, 256

	BetaStart           float64      // the smallest beta (noise variance of a step), in (0, BetaEnd). Default 0.0001
	BetaEnd             float64      // the largest, in (BetaStart, 1). Default 0.999, the cosine schedule's
	NoiseSteps          int          // timesteps of the noising process, 1..=100000. Default 1000
	BetaSchedule        BetaSchedule // default ScheduleCosine
	PredictionType      Prediction   // default PredictionEpsilon
	RescaleBetasZeroSNR bool         // make the last timestep pure noise (arXiv 2305.08891); not with PredictionEpsilon

	Device      Device // default DeviceAuto
	DeviceIndex int    // which CUDA device, from 0. Default 0
	NumThreads  int    // threads that a CPU process computes with, 1..=1024, or 0: one a core. Default 0
	MaxBatch    int    // the most images in one evaluation of the network, 1..=65536, or 0: chosen by device. Default 0
	Seed        uint64 // determines the initial weights and all randomness of training. Default 0

	LayersPerBlock   int     // residual blocks of each level, 1..=8. Default 2
	AttentionLevels  int     // bit i set: attention at level i (0: full resolution); -1: chosen by the library. Default -1
	AttentionHeadDim int     // channels of an attention head; 0: one head. Default 0
	NormNumGroups    int     // groups of each group normalisation; 0: chosen by the library. Default 0
	Dropout          float64 // probability that a feature is dropped in training, [0, 1). Default 0

	Optimizer      Optimizer // default OptimizerAdam
	MixedPrecision Precision // the arithmetic of training. Default PrecisionF32
	LearningRate   float64   // > 0. Default 0.0001
	AdamBeta1      float64   // decay of the average of gradients, [0, 1). Default 0.9
	AdamBeta2      float64   // decay of the average of squared gradients, [0, 1). Default 0.999
	AdamEpsilon    float64   // added to the optimizer's denominator, > 0. Default 1e-8
	WeightDecay    float64   // >= 0. Default 0
	GradientClip   float64   // the gradient's norm is clipped to this, > 0; 0: no clipping. Default 0
	EMADecay       float64   // decay of the weights' moving average, which sampling uses, [0, 1); 0: none. Default 0

	Loss        Loss    // default LossMSE
	HuberDelta  float64 // the difference at which LossHuber becomes linear, > 0. Default 1
	MinSNRGamma float64 // Min-SNR weighting (arXiv 2303.09556), 5 in the paper; 0: off. Default 0
	WarmupSteps int     // optimizer steps over which the learning rate rises from 0. Default 0
	// DecaySteps is the optimizer step at which the learning rate has come down to 0 along half a cosine, more than
	// WarmupSteps; or 0: it stays. Default 0.
	DecaySteps int
	// AccumulationSteps is how many calls of TrainStep make one optimizer step, >= 1. Default 1.
	AccumulationSteps int

	// InferencePrecision is what sampling and PredictNoise compute in. With PrecisionBF16 and PrecisionAuto a
	// prediction differs by at most 0.05 of its largest value. Default PrecisionF32.
	InferencePrecision Precision
	// Deterministic: on CUDA too, an image is the same bit for bit in any batch; on the CPU it always is.
	Deterministic bool

	// NumClassEmbeds is the number of classes of a class-conditional network, or ClassesAsTimesteps; 0: it has none.
	// With classes, training and sampling need the class of each image. Default 0.
	NumClassEmbeds int
}

// DefaultConfig returns the defaults that the fields' comments name. Without a library it returns the zero Config,
// and New, which then needs the library too, says what is wrong with it.
func DefaultConfig() Config {
	return initialConfig(abiConfigInit)
}

// CIFAR10Config returns DDPM's CIFAR-10 set-up: 32x32 RGB, HiddenDims 128, 256, 256, 256 with attention at 16x16
// (the 35.7 million parameters of google/ddpm-cifar10-32), linear schedule 0.0001..0.02, AdamW at 0.0002 with weight
// decay 0.00001, gradient clip 1, EMA 0.999, dropout 0.1. Without a library it does as DefaultConfig.
func CIFAR10Config() Config {
	return initialConfig(abiConfigInitCIFAR10)
}

func initialConfig(fill func() (Config, error)) Config {
	if open() != nil {
		return Config{}
	}
	config, err := fill()
	if err != nil {
		return Config{}
	}
	return config
}
