import Foundation

/// Finds by how many samples the shadow lags: the lag at which the changes of both sides agree best, over all KPIs.
struct LagFinder: Codable, Sendable, Equatable {
    private(set) var lag = 0
    private var costs: [Double]
    private var weight = 0.0

    init(_ settings: DriftConfiguration) { costs = [Double](repeating: 0, count: settings.maximumLag + 1) }

    /// Mean absolute difference of the two sides' changes over two samples, per lag.
    mutating func add(_ tracks: [KPITrack], _ settings: DriftConfiguration) {
        var sums = [Double](repeating: 0, count: costs.count)
        var used = false
        for track in tracks {
            guard let differences = Self.differences(track, settings) else { continue }
            for lag in sums.indices { sums[lag] += differences[lag] }
            used = true
        }
        guard used else { return }
        // Forgets sooner than the baseline: how the two sides' clocks and caches lie to each other is not for ever.
        weight = min(weight + 1, settings.lagSamples)
        for lag in costs.indices { costs[lag] += (sums[lag] - costs[lag]) / weight }
        guard weight >= 20, let best = costs.indices.min(by: { costs[$0] < costs[$1] }) else { return }
        // 3 %: without movement all lags are alike, and noise must not choose.
        if costs[best] < 0.97 * costs[lag] { lag = best }
    }

    private static func differences(_ track: KPITrack, _ settings: DriftConfiguration) -> [Double]? {
        let newest = track.shadowHistory.count - 1
        guard newest >= settings.maximumLag + 2, let s1 = track.shadowHistory[newest], let s0 = track.shadowHistory[newest - 2] else { return nil }
        let change = track.transform(s1, settings) - track.transform(s0, settings)
        var out: [Double] = []
        for lag in 0...settings.maximumLag {
            guard let p1 = track.primary(lag: lag), let p0 = track.primary(lag: lag + 2) else { return nil }
            out.append(min(abs(track.transform(p1, settings) - track.transform(p0, settings) - change), 1))
        }
        return out
    }
}
