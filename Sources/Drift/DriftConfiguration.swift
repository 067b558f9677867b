/// The settings of a `DriftAnalyzer`. The defaults are what the product ships; they hold for every step and every KPI, because the analyzer
/// expresses everything in units of what it has learned (its own noise, its own tails). "Samples" are what is judged: blocks, where the step is short.
public struct DriftConfiguration: Codable, Sendable, Equatable {
    /// Samples that come faster than this are averaged first, over blocks of about as many seconds: what lasts less than three blocks is no evidence.
    public var blockSeconds = 20.0

    // Baseline.

    /// Samples of a KPI, with something going on, before it is judged at all.
    public var learningSamples = 60.0
    /// Samples at a level of load before that level is judged.
    public var binSamples = 25.0
    /// Samples that a neighbouring level counts for while a level has few of its own.
    public var binPrior = 20.0
    /// Samples over which the baseline forgets.
    public var memorySamples = 1500.0
    /// The largest lag of the shadow that is looked for, in samples.
    public var maximumLag = 4
    /// Samples over which the agreement at each lag is remembered.
    public var lagSamples = 500.0
    /// Smallest noise believed, as a relative change: less than this is no reason to move a guest.
    public var smallestSpread = 0.045
    /// The same where both sides idle, and how fast it fades with the level.
    public var idleSpread = 0.5
    public var idleFade = 2.0
    /// Value, as a share of its level while busy, around which a sample counts as idle and differences fade.
    public var idleShare = 0.07
    /// Samples after which a value counts for its KPI's level. A fault that begins must not change the scale that it is judged on: on that of a large one the
    /// healthy side would lie at a level never seen, where nothing is judged.
    public var levelDelay = 8
    /// ln(1 + value / idle value) from which a sample counts as busy.
    public var activeLevel = 1.2
    /// Sum of squares of a regressor (natural logarithms) that it takes to believe half of what the regression says about it.
    public var ridge = 60.0
    /// Standard deviations beyond which a sample does not bend the baseline.
    public var redescend = 5.0
    /// How much the scatter of a level counts against its samples in the regression: 0 not at all, 1 as least squares would have it.
    public var precisionPower = 0.0
    /// How differently two healthy hosts may react to load outside what has been seen: relative change per e-fold of load.
    public var reaction = 0.4
    /// Share of a common fast move of both sides that is believed to be timing.
    public var transientShare = 0.2
    /// Score above which a KPI's baseline stands still, the speed it keeps (share of the normal; the second for the tails), and the seconds, but at
    /// least samples, after which the new state is taken for the normal.
    public var freezeScore = 0.6
    public var frozenSpeed = 0.02
    public var frozenTailSpeed = 0.3
    public var frozenSeconds = 36000.0
    public var frozenSamples = 100.0
    /// Samples over which the old baseline is forgotten then.
    public var acceptSamples = 20.0

    // Evidence.

    /// Weights of the exponential means: of the running median, and of the residuals for shifts and for creeps.
    public var fastWeight = 0.7
    public var mediumWeight = 0.07
    public var slowWeight = 0.02
    /// Largest standardised residuals that count in each of them.
    public var fastClip = 6.0
    public var clip = 3.0
    public var slowClip = 2.5
    /// -ln of the tail probability at which one KPI alone alarms.
    public var surprise = 10.6
    /// Share of a KPI's past that counts as its tail, how many standard deviations of a normal distribution that is, and what is believed of the tail before
    /// it was seen: mean excess beyond the normal's, in standard deviations, and its weight in exceedances; one exceedance counts for at most `tailCap` mean excesses.
    public var tailShare = 0.15
    public var tailQuantile = 1.44
    public var tailPrior = 0.25
    public var tailPriorWeight = 30.0
    public var tailCap = 1.5
    /// What is believed of the scatter of each mean before it was seen, as a multiple of what independent noise would give: a median scatters less,
    /// longer means more, because healthy hosts wander, and the longest has seen too few of its own time scales to have learned that by itself.
    public var fastScatter = 0.8
    public var mediumScatter = 1.3
    public var slowScatter = 2.2
    /// Standardised residual that counts as a spike, the share of spiking samples that is looked for, and the log likelihood ratio that it takes.
    public var spikeLevel = 3.0
    public var spikeShare = 0.16
    public var spikeThreshold = 5.5
    /// What is believed of a KPI's own share before it was seen, the least share believed, and how many times the share that was learned counts as
    /// usual: noise with heavy tails spikes more often now than then by luck alone, and asks for this margin; quiet noise has it from the least share.
    public var spikePrior = 0.006
    public var spikeLeast = 0.006
    public var spikeMargin = 1.7
    /// What is believed of the mean excess of spikes beyond the level before some were seen, in standard deviations; the largest size that counts, in mean
    /// excesses; and what is taken off the log likelihood ratio of a size, because it is that of the best of many hypotheses.
    public var spikeExcess = 1.0
    public var spikeCap = 4.0
    public var spikeDoubt = 0.4

    /// The same for blocks of several samples: a block is as large as the worst second in it, so its size tells nothing of the others.
    var forBlocks: DriftConfiguration {
        var settings = self
        (settings.spikeCap, settings.spikeDoubt) = (1, 0)
        return settings
    }
    /// Times the mean peak of its natural excursions that the ratio has to reach.
    public var spikePeaks = 1.8
    /// Standardised residual below which a sample is calm; from four calm ones on the evidence shrinks by this factor a sample.
    public var calmLevel = 1.5
    public var calmDecay = 0.9
    /// Factor on evidence that a primary does better than expected: the shadow's trouble, which moves no guest.
    public var betterFactor = 0.3
    /// Exponent of the norm that combines KPIs.
    public var norm = 3.0

    // Hardware.

    /// Seconds for which a sensor's report counts, and the factor on the score while it does.
    public var hardwareSeconds = 7200.0
    public var hardwareFactor = 1.4

    public init() {}
}
