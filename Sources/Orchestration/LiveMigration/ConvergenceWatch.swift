import ControlProtocol
import Foundation
import Libvirt

/// A live migration at one moment, as libvirt's job statistics have it.
struct MigrationSample: Equatable {
    var elapsedMs: Double
    var diskTotal: UInt64 = 0
    var diskRemaining: UInt64 = 0
    var memoryTotal: UInt64 = 0
    var memoryRemaining: UInt64 = 0
    var memoryProcessed: UInt64 = 0
    /// Passes over the memory, the one under way included; 0: not begun.
    var pass: UInt64 = 0
    var dirtyBytesPerSecond: UInt64 = 0
    var bandwidthBytesPerSecond: UInt64 = 0
    var throttlePercent: Int64?

    init(elapsedMs: Double) { self.elapsedMs = elapsedMs }

    init(_ job: JobInfo) {
        elapsedMs = Double(job.elapsedMilliseconds ?? 0)
        diskTotal = job.diskTotal ?? 0
        diskRemaining = job.diskRemaining ?? 0
        memoryTotal = job.memoryTotal ?? 0
        memoryRemaining = job.memoryRemaining ?? 0
        memoryProcessed = job.memoryProcessed ?? 0
        pass = job.memoryIteration ?? 0
        dirtyBytesPerSecond = (job.memoryDirtyRate ?? 0) &* (job.memoryPageSize ?? 4096)
        bandwidthBytesPerSecond = job.memoryBytesPerSecond ?? 0
        throttlePercent = job.autoConvergeThrottle
    }

    /// One line for a person; the client adds the bytes.
    var text: String {
        guard memoryTotal > 0, pass > 0 else { return diskTotal > 0 ? "Copying disks" : "Preparing" }
        var parts = ["pass \(pass)", "\(Quantity.bytes(memoryRemaining)) remaining", "dirty rate \(Quantity.bytes(dirtyBytesPerSecond))/s",
                     "bandwidth \(Quantity.bytes(bandwidthBytesPerSecond))/s"]
        if let seconds = estimatedSeconds { parts.append("about \(Quantity.duration(milliseconds: seconds * 1000)) to go") }
        if let throttlePercent, throttlePercent > 0 { parts.append("guest slowed down by \(throttlePercent) %") }
        return "Copying memory (\(parts.joined(separator: ", ")))"
    }

    /// Until it is over, if nothing changes; nil when it would not be, or when the two rates are too close to tell.
    var estimatedSeconds: Double? {
        let (bandwidth, dirty) = (Double(bandwidthBytesPerSecond), Double(dirtyBytesPerSecond))
        guard bandwidth > dirty * 1.1 else { return nil }
        return Double(memoryRemaining) / (bandwidth - dirty)
    }
}

/// Notices when passes over the guest's memory do not leave less and less of it.
///
/// What remains runs from the size of a pass down to nothing in each of them, so the largest values of two halves of a stretch of time are
/// compared, not two moments. The stretch has ten seconds and four passes at least: passes of a large guest take minutes, of a small one a tenth of a second.
struct ConvergenceWatch {
    static let leastMs = 10_000.0
    static let leastPasses: UInt64 = 4
    /// A stretch that takes more than this off what remains counts as progress.
    static let progress = 0.1

    private var samples: [MigrationSample] = []

    /// Takes the next sample; true when it does not converge.
    mutating func note(_ sample: MigrationSample) -> Bool {
        // The first pass is the whole memory, and the second what was dirtied during that.
        guard sample.pass >= 2 else { return false }
        samples.append(sample)
        while samples.count > 2, isEnough(samples[1], sample) { samples.removeFirst() }
        guard let first = samples.first, isEnough(first, sample) else { return false }
        // While auto-converge still takes more from the guest there is hope.
        if let throttle = sample.throttlePercent, throttle > (first.throttlePercent ?? 0), throttle < 99 { return false }
        let middle = (first.elapsedMs + sample.elapsedMs) / 2
        let before = samples.filter { $0.elapsedMs <= middle }.map(\.memoryRemaining).max() ?? 0
        let after = samples.filter { $0.elapsedMs > middle }.map(\.memoryRemaining).max() ?? 0
        return Double(after) > Double(before) * (1 - Self.progress)
    }

    private func isEnough(_ first: MigrationSample, _ last: MigrationSample) -> Bool {
        last.elapsedMs - first.elapsedMs >= Self.leastMs && last.pass >= first.pass + Self.leastPasses
    }

    /// The largest remainder in sight: what the guest would have to stand still for.
    var peakRemaining: UInt64 { samples.map(\.memoryRemaining).max() ?? 0 }

    /// `remaining 800 MiB, dirty rate 1.2 GiB/s, bandwidth 110 MiB/s: does not converge; ...`
    func complaint(postcopy: Bool, autoConverge: Bool) -> String {
        let last = samples.last ?? MigrationSample(elapsedMs: 0)
        var ways = [last.bandwidthBytesPerSecond > 0 ? "a --downtime above \(peakRemaining * 1000 / last.bandwidthBytesPerSecond)ms" : "--downtime"]
        if !postcopy { ways.append("--postcopy") }
        if !autoConverge { ways.append("--auto-converge") }
        let choice = ways.count > 1 ? ways.dropLast().joined(separator: ", ") + " or " + (ways.last ?? "") : ways.joined()
        return "remaining \(Quantity.bytes(peakRemaining)), dirty rate \(Quantity.bytes(last.dirtyBytesPerSecond))/s, bandwidth \(Quantity.bytes(last.bandwidthBytesPerSecond))/s: "
            + "does not converge; use \(choice)"
    }
}
