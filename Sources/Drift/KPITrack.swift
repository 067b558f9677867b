import Foundation

/// One KPI of a pair: its baseline (what the primary shows when the shadow shows this much under this load) and the evidence against it.
///
/// Values are compared as ln(1 + |value| / idle level): relative differences where there is work, nothing where both idle.
struct KPITrack: Codable, Sendable, Equatable {
    let name: String
    let kind: KPIClass
    /// Usual magnitude while there is work: it sets the idle level.
    private var magnitude = WorkingLevel()
    /// Values that do not count for it yet.
    private var waiting: [[Double]] = []
    private var regression = RobustRegression()
    private var spread = LevelSpread()
    private var levels = UsualRange(), loads = UsualRange()
    private var evidence: Evidence
    private var movement = Movement()
    private var samples = 0.0, activeSamples = 0.0, frozenFor = 0.0
    /// The lag that was judged with, and samples of the primary that it shows a second time since it grew: what was evidence once is none again.
    private var judgedLag = 0, repeated = 0
    /// The last values as measured, newest last.
    private(set) var primaryHistory: [Double?] = [], shadowHistory: [Double?] = []
    private(set) var worse = Evidence.Reading(), better = Evidence.Reading()
    private(set) var isReady = false
    /// The usual magnitude when there was last nothing to explain.
    private var calmLevel = 0.0
    /// The baseline stands still, because the KPI drifts.
    private var isFrozen = false
    private(set) var since: Double?
    private var residualMean = 0.0

    init(name: String, _ settings: DriftConfiguration) {
        self.name = name
        kind = KPIClass(name: name)
        evidence = Evidence(settings)
    }

    var score: Double { max(worse.score, better.score) }

    func transform(_ value: Double, _ settings: DriftConfiguration) -> Double {
        let scaled = log1p(abs(value) / max(settings.idleShare * magnitude.level, 1e-12))
        return value < 0 ? -scaled : scaled
    }

    mutating func take(primary: Double?, shadow: Double?, _ settings: DriftConfiguration) {
        let kept = settings.maximumLag + 3
        primaryHistory.append(primary)
        shadowHistory.append(shadow)
        if primaryHistory.count > kept { primaryHistory.removeFirst() }
        if shadowHistory.count > kept { shadowHistory.removeFirst() }
        // A fault of one side must not change what both sides' values are compared with.
        guard !isFrozen else { return }
        waiting.append([primary, shadow].compactMap(\.self))
        // Until the KPI is judged there is nothing to wait for.
        while waiting.count > (samples < settings.learningSamples ? 0 : settings.levelDelay) {
            for value in waiting.removeFirst() { magnitude.learn(value, memory: settings.memorySamples * 4) }
        }
    }

    func primary(lag: Int) -> Double? {
        let index = primaryHistory.count - 1 - lag
        return index >= 0 ? primaryHistory[index] : nil
    }

    var shadow: Double? { shadowHistory.last ?? nil }

    /// Judges the newest sample of the shadow with the primary's of `lag` samples ago, then learns from it.
    mutating func judge(time: Double, step: Double, lag: Int, load: Double, _ settings: DriftConfiguration) {
        repeated = max(0, repeated - 1) + max(0, lag - judgedLag)
        judgedLag = lag
        guard let p = primary(lag: lag), let s = shadow else {
            evidence.miss(settings)
            read(time, settings)
            return
        }
        let x = transform(s, settings), y = transform(p, settings), target = y - x
        // Near idle the started logarithm flattens: a constant factor between the hosts fades with 1 - exp(-|x|).
        let fade = 1 - exp(-abs(x))
        let prediction = regression.predict(x, load, ridge: settings.ridge)
        let residual = target - fade * prediction.value
        let idle = settings.idleSpread * exp(-settings.idleFade * abs(x))
        let sigma = spread.sigma(x, prior: settings.binPrior, floor: (settings.smallestSpread * settings.smallestSpread + idle * idle).squareRoot())
        let own = sigma * (1 + fade * fade * prediction.leverage).squareRoot()
        let timing = settings.transientShare * max(0, min(range(primaryHistory, settings), range(shadowHistory, settings)) - 4 * sigma)
        let beyond = settings.reaction * (levels.excess(x) + loads.excess(load))
        let z = residual / (own * own + timing * timing + beyond * beyond).squareRoot()

        let active = max(abs(x), abs(y)) > settings.activeLevel
        samples += 1
        if active { activeSamples += 1 }
        // Errors are rare by nature: that there were none is all there is to learn.
        isReady = samples >= settings.learningSamples && (activeSamples >= settings.learningSamples || kind == .errors)
        let judged = isReady && spread.weight(x) >= settings.binSamples && repeated == 0
        if judged { evidence.add(z, settings) } else { evidence.miss(settings) }
        residualMean += 0.2 * (max(-5, min(5, residual)) - residualMean)
        read(time, settings)

        let over = judged && score >= settings.freezeScore
        // On the scale of before: that of the fault would make the healthy side's values move.
        if since == nil { calmLevel = magnitude.level }
        let idleValue = max(settings.idleShare * calmLevel, 1e-12)
        movement.add(primary: log1p(abs(p) / idleValue), shadow: log1p(abs(s) / idleValue), held: since != nil)
        frozenFor = over ? frozenFor + 1 : max(0, frozenFor - 3)
        let accepted = over && frozenFor >= max(settings.frozenSamples, settings.frozenSeconds / step)
        let frozen = over && !accepted
        isFrozen = frozen
        if accepted { regression.forget(keep: 1 - 1 / settings.acceptSamples) }
        if judged, active { evidence.learn(speed: frozen ? settings.frozenTailSpeed : 1, settings) }
        learn(x: x, load: load, target: target, fade: fade, residual: residual, scale: own, active: active,
              speed: frozen ? settings.frozenSpeed : 1, accepted: accepted, settings)
    }

    private mutating func learn(x: Double, load: Double, target: Double, fade: Double, residual: Double, scale: Double, active: Bool,
                                speed: Double, accepted: Bool, _ settings: DriftConfiguration) {
        // Tukey's biweight: what lies far out does not bend the baseline.
        let ratio = residual / (settings.redescend * scale)
        let robust = abs(ratio) < 1 ? (1 - ratio * ratio) * (1 - ratio * ratio) : 0
        if fade > 0.3 {
            let weight = activeSamples < 10 || accepted ? 1 : speed * max(robust, 0.01)
            let precision = pow(spread.precision(x, floor: settings.smallestSpread), settings.precisionPower)
            regression.learn(x, load, target: target / fade, weight: precision * fade * fade * weight, memory: settings.memorySamples)
        }
        if active {
            levels.learn(x, memory: settings.memorySamples)
            loads.learn(load, memory: settings.memorySamples)
        }
        spread.learn(x, residual: residual, weight: speed, memory: settings.memorySamples)
    }

    /// Range of a side's transformed values over the last samples.
    private func range(_ history: [Double?], _ settings: DriftConfiguration) -> Double {
        var low = Double.infinity, high = -Double.infinity
        for case let value? in history.suffix(settings.maximumLag + 1) {
            let x = transform(value, settings)
            low = min(low, x)
            high = max(high, x)
        }
        return high > low ? high - low : 0
    }

    private mutating func read(_ time: Double, _ settings: DriftConfiguration) {
        let up = evidence.reading(settings, sign: 1), down = evidence.reading(settings, sign: -1)
        worse = kind.worseSign > 0 ? up : kind.worseSign < 0 ? down : up.score > down.score ? up : down
        better = Evidence.Reading()
        if kind.worseSign != 0 {
            better = kind.worseSign > 0 ? down : up
            better.score *= settings.betterFactor
        }
        // The evidence began where its mean last left zero, about one time scale before it can be read.
        if score < 0.3 { since = nil } else if since == nil { since = time }
    }

    func contribution(_ settings: DriftConfiguration) -> DriftContribution? {
        guard score >= 0.3, let since else { return nil }
        let reading = worse.score >= better.score ? worse : better
        var direction: DriftContribution.Direction = worse.score >= better.score ? .primaryWorse : .shadowWorse
        if kind.worseSign == 0 {
            switch movement.mover(sign: reading.sign) {
            case .primary: direction = .primaryWorse
            case .shadow: direction = .shadowWorse
            case nil: direction = .differs
            }
        }
        return DriftContribution(kpi: name, kind: kind, score: score, direction: direction, pattern: reading.pattern, since: since,
                                 confidence: 1 - exp(-reading.surprise), relativeChange: expm1(residualMean))
    }
}
