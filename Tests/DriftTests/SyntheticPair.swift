import Foundation
@testable import Drift

/// A fixed sequence of random numbers (splitmix64): the same pair in every run.
struct Noise {
    private var state: UInt64

    init(_ seed: UInt64) { state = seed }

    mutating func uniform() -> Double {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return Double((z ^ (z >> 31)) >> 11) / 9007199254740992
    }

    mutating func normal() -> Double { (-2 * log(max(uniform(), 1e-300))).squareRoot() * cos(2 * .pi * uniform()) }
}

typealias Sample = (time: Double, primary: [String: Double?], shadow: [String: Double?])

/// How much there is to do at each row.
struct Work {
    let amount: (Int) -> Double

    init(_ amount: @escaping (Int) -> Double) { self.amount = amount }
}

/// A primary and a shadow that do the same work on unlike hosts; `bend` changes what row `index` shows.
func pair(rows: Int, step: Double = 60, lag: Int = 0, seed: UInt64 = 1,
          work: Work = Work { 1 + 0.4 * sin(Double($0) / 150) },
          bend: (Int, inout [String: Double?], inout [String: Double?]) -> Void = { _, _, _ in }) -> [Sample] {
    var noise = Noise(seed), loads: [Double] = []
    return (0..<rows).map { index in
        loads.append(work.amount(index) * (1 + 0.05 * noise.normal()))
        let now = loads[index], then = loads[max(0, index - lag)]
        func jitter(_ share: Double) -> Double { exp(share * noise.normal()) }
        var primary: [String: Double?] = ["cpu": 30 * now * jitter(0.04), "disk_latency_ms": 0.8 * (0.7 + 0.3 * now) * jitter(0.1),
                                          "net_rate": 200 * now * jitter(0.07)]
        var shadow: [String: Double?] = ["cpu": 27 * then * jitter(0.04), "disk_latency_ms": 1.0 * (0.7 + 0.3 * then) * jitter(0.1),
                                         "net_rate": 180 * then * jitter(0.07)]
        bend(index, &primary, &shadow)
        return (Double(index) * step, primary, shadow)
    }
}

func scale(_ values: inout [String: Double?], _ name: String, by factor: Double) {
    values[name] = values[name].flatMap { $0 }.map { $0 * factor }
}

func verdicts(_ samples: [Sample], step: Double = 60) -> [DriftVerdict] {
    var analyzer = DriftAnalyzer(step: step)
    return samples.map { analyzer.add(time: $0.time, primary: $0.primary, shadow: $0.shadow) }
}

extension [DriftVerdict] {
    var firstAlarm: Int? { firstIndex(where: \.isAlarm) }
}
