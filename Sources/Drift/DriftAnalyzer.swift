import Foundation

/// Tells from the KPIs of a primary and its shadow side whether they drift apart, which of the two is at fault, and how sure that is.
///
/// Feed it one sample of both sides a step; steps below `blockSeconds` are averaged to blocks, and the verdict changes once a block. It uses nothing but what
/// it was fed, in constant memory, and its whole state is `Codable`: decoded, it goes on as if it had never stopped. It learns the baseline from the first
/// samples, adapts it slowly, and holds it while a KPI drifts. When the domain's shape or its hosts change, throw it away and start a new one: what it
/// learned was about others.
public struct DriftAnalyzer: Codable, Sendable {
    /// KPIs beyond this number are ignored: a bound for memory and time, not a limit that a domain comes near.
    public static let mostKPIs = 256

    /// Seconds between samples.
    public let step: Double
    private let settings: DriftConfiguration
    private var tracks: [KPITrack] = []
    private var lagFinder: LagFinder
    private var load = 0.0
    /// Of the newest sample; nil before the first.
    public private(set) var lastTime: Double?
    /// Samples that are averaged to one that is judged.
    private let blockSamples: Double
    private var block: SampleBlock?
    /// End of the last block judged.
    private var judgedTime: Double?
    private var hardware: [HardwareEvent] = []
    /// The verdict on the last sample; nil before the first.
    public private(set) var verdict: DriftVerdict?

    /// `step` in seconds, greater than 0 (anything else counts as 1).
    public init(step: Double, configuration: DriftConfiguration = .init()) {
        self.step = step.isFinite && step > 0 ? step : 1
        blockSamples = max(1, min((configuration.blockSeconds / self.step).rounded(), 1e6))
        settings = blockSamples > 1 ? configuration.forBlocks : configuration
        lagFinder = LagFinder(settings)
    }

    /// Adds the samples that both sides took at `time` (seconds, any origin, rising). A KPI that is nil, absent or not a finite number is a lost sample.
    /// Whole samples that are missing between two times are noticed. A time that does not rise is refused: the last verdict again.
    @discardableResult
    public mutating func add(time: Double, primary: [String: Double?], shadow: [String: Double?]) -> DriftVerdict {
        let refused = !time.isFinite || lastTime.map { time <= $0 } ?? false
        if refused { return verdict ?? DriftVerdict(time: 0, score: 0, isLearning: true, lag: 0, contributions: [], hardware: []) }
        lastTime = time
        // A block that lost its last samples ends when the next one begins.
        if let late = block, position(time, in: late) >= blockSamples - 0.5 { finish(late) }
        var current = block ?? SampleBlock(start: time)
        current.add(time: time, primary: primary, shadow: shadow, limit: Self.mostKPIs)
        block = current
        if position(time, in: current) >= blockSamples - 1.5 { finish(current) }
        return verdict ?? DriftVerdict(time: time, score: 0, isLearning: true, lag: 0, contributions: [], hardware: [])
    }

    /// The clock that tells the times was set, by so many seconds: what is learned stays, and times may go on from there.
    public mutating func clockWasSet(by seconds: Double) {
        guard seconds.isFinite else { return }
        lastTime = lastTime.map { $0 + seconds }
        judgedTime = judgedTime.map { $0 + seconds }
        block = nil
        hardware = hardware.map { HardwareEvent(time: $0.time + seconds, side: $0.side, sensor: $0.sensor) }
    }

    private func position(_ time: Double, in block: SampleBlock) -> Double { (time - block.start) / step }

    private mutating func finish(_ finished: SampleBlock) {
        block = nil
        let time = finished.end, (primary, shadow) = finished.means
        fillGap(until: time)
        judgedTime = time
        meet(Set(primary.keys).union(shadow.keys))
        for index in tracks.indices {
            let name = tracks[index].name
            tracks[index].take(primary: primary[name] ?? nil, shadow: shadow[name] ?? nil, settings)
        }
        verdict = judge(time)
    }

    /// A sensor of a host reports trouble: for a while less evidence is needed against that side.
    public mutating func note(hardwareEvent: HardwareEvent) {
        hardware.removeAll { $0.sensor == hardwareEvent.sensor && $0.side == hardwareEvent.side }
        hardware.append(hardwareEvent)
        // 16 sensors name the trouble; the rest adds nothing.
        if hardware.count > 16 { hardware.removeFirst() }
    }

    private mutating func meet(_ names: Set<String>) {
        guard tracks.count < Self.mostKPIs else { return }
        let known = Set(tracks.map(\.name))
        for name in names.subtracting(known).sorted().prefix(Self.mostKPIs - tracks.count) { tracks.append(KPITrack(name: name, settings)) }
        tracks.sort { $0.name < $1.name }
    }

    /// Missing rows keep the two sides' histories aligned; more of them than the histories hold make no difference.
    private mutating func fillGap(until time: Double) {
        guard let judgedTime else { return }
        let missing = Int(max(0, min((time - judgedTime) / (step * blockSamples) - 0.5, Double(settings.maximumLag + 3))))
        for _ in 0..<missing {
            for index in tracks.indices { tracks[index].take(primary: nil, shadow: nil, settings) }
        }
    }

    private mutating func judge(_ time: Double) -> DriftVerdict {
        lagFinder.add(tracks, settings)
        let loads = tracks.lazy.filter(\.kind.isLoad).compactMap { [settings] track in track.shadow.map { track.transform($0, settings) } }
        var sum = 0.0, count = 0.0
        for value in loads { (sum, count) = (sum + value, count + 1) }
        if count > 0 { load = sum / count }
        var total = 0.0, accused = [PairSide.primary: 0.0, .shadow: 0.0]
        var contributions: [DriftContribution] = []
        for index in tracks.indices {
            tracks[index].judge(time: time, step: step * blockSamples, lag: lagFinder.lag, load: load, settings)
            let power = pow(tracks[index].score, settings.norm)
            total += power
            guard let contribution = tracks[index].contribution(settings) else { continue }
            contributions.append(contribution)
            if let side = contribution.side { accused[side, default: 0] += power }
        }
        contributions.sort { ($0.score, $1.kpi) > ($1.score, $0.kpi) }
        let (primary, shadow) = (accused[.primary, default: 0], accused[.shadow, default: 0])
        let side: PairSide? = primary > 2 * shadow ? .primary : shadow > 2 * primary ? .shadow : nil
        var score = pow(total, 1 / settings.norm)
        let witnesses = matchingHardware(time, side: side, hasEvidence: !contributions.isEmpty)
        if !witnesses.isEmpty { score *= settings.hardwareFactor }
        return DriftVerdict(time: time, score: score, side: contributions.isEmpty ? nil : side, isLearning: !tracks.contains(where: \.isReady),
                            lag: lagFinder.lag, contributions: contributions, hardware: witnesses)
    }

    private mutating func matchingHardware(_ time: Double, side: PairSide?, hasEvidence: Bool) -> [HardwareEvent] {
        hardware.removeAll { time - $0.time > settings.hardwareSeconds }
        return hasEvidence ? hardware.filter { $0.time <= time && (side == nil || $0.side == side) } : []
    }
}
