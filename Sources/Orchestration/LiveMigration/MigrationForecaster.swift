import ControlProtocol
import Foundation
import Libvirt
import Platform

/// `swap --to --dry-run`: what a live migration would take.
extension LiveMigration {
    /// 1 Gbit/s without what Ethernet, IP and TCP need.
    private static let assumedBandwidth: UInt64 = 112 << 20
    /// QEMU's own, when libvirt cannot tell.
    private static let defaultDowntimeMs: UInt64 = 300
    private static let measureSeconds: Int32 = 1

    func forecast(_ progress: Progress) throws -> MigrationForecast {
        progress(.init("Looking whether \(peer.name) can take \(domain.name)"))
        let findings = try check()
        progress(.init("Measuring how fast \(domain.name) dirties its memory"))
        let handle = try domain.handle()
        let dirtied = try measureDirtyRate(handle, isKVM: findings.definition.type == "kvm")
        let memory = findings.definition.memoryBytes
        let resident = min(memory, (try? handle.statistics(.balloon))?.residentKiB.map { $0 << 10 } ?? memory)
        let disks = findings.plan.replicas.reduce(0) { $0 + $1.allocationBytes }
        let earlier = store.bandwidth(to: peer.name)
        let (bandwidth, source): (UInt64, MigrationForecast.BandwidthSource) =
            if let limit = options.bandwidthBytesPerSecond { (limit, .option) } else if let earlier { (earlier, .earlier) } else { (Self.assumedBandwidth, .assumed) }
        let limit = options.downtimeMs ?? (try? handle.migrationDowntimeLimit()) ?? Self.defaultDowntimeMs
        let estimate = MigrationEstimate(.init(memoryBytes: resident, diskBytes: disks, dirtyBytesPerSecond: dirtied + (1 << 20), bandwidthBytesPerSecond: bandwidth,
                                               downtimeLimitMs: limit, autoConverge: options.autoConverge, postcopy: options.postcopy))
        return MigrationForecast(
            domain: domain.name, from: environment.hostName, to: peer.name, memoryBytes: memory, residentBytes: resident, diskBytes: disks,
            dirtyBytesPerSecond: dirtied, bandwidthBytesPerSecond: bandwidth, bandwidthSource: source, downtimeLimitMs: limit, converges: estimate.converges,
            durationMs: estimate.course?.durationMs, downtimeMs: estimate.course?.downtimeMs, bytes: estimate.course?.bytes,
            throttlePercent: estimate.course?.throttlePercent ?? 0, warnings: findings.warnings)
    }

    /// Bytes a second. Under KVM every page counts (dirty bitmap); else, or where that is not to be had, a sample of them.
    private func measureDirtyRate(_ handle: Domain, isKVM: Bool) throws -> UInt64 {
        do {
            try startMeasuring(handle, isKVM: isKVM)
        } catch let error as LibvirtError where error.isNotSupported {
            throw ControlFailure("The dirty rate of \(domain.name) cannot be measured: \(error.message)", advice: "That needs libvirt 7.2 and QEMU 5.2 or later; without --dry-run the migration tells as it goes")
        }
        let deadline = MonotonicTime.now.adding(milliseconds: Double(Self.measureSeconds) * 1000 + 10_000)
        while MonotonicTime.now < deadline {
            usleep(200_000)
            let statistics = try handle.statistics(.dirtyRate)
            // VIR_DOMAIN_DIRTYRATE_MEASURED
            guard statistics.dirtyRateStatus == 2 else { continue }
            return UInt64(clamping: statistics.dirtyRateMegabytesPerSecond ?? 0) << 20
        }
        throw ControlFailure("The measurement of \(domain.name)'s dirty rate did not end in time", advice: "Try again when the host is less busy")
    }

    private func startMeasuring(_ handle: Domain, isKVM: Bool) throws {
        if isKVM {
            do {
                return try handle.startDirtyRateCalculation(seconds: Self.measureSeconds, flags: .dirtyBitmap)
            } catch {
                // Older ones do not have it, and a QEMU with a dirty ring does not allow it.
                Log.debug("\(domain.name): \(error); pages are sampled")
            }
        }
        try handle.startDirtyRateCalculation(seconds: Self.measureSeconds)
    }
}
