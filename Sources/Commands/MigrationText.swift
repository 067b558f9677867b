import ControlProtocol
import Foundation

/// What `swap --to` says for people.
enum MigrationText {
    static func sentence(_ report: MigrationReport) -> String {
        func duration(_ milliseconds: Double) -> String { Quantity.duration(milliseconds: milliseconds) }
        let downtime = report.downtimeMs.map { ", downtime \(duration($0))" } ?? ""
        let disks = report.disks.isEmpty ? "" : " and \(Quantity.bytes(report.diskBytes)) of disks"
        let throttle = report.throttlePercent.map { ", slowed down by up to \($0) %" } ?? ""
        var lines = ["\(report.domain.printable) now runs on \(report.to.printable) (from \(report.from.printable)): live migration"
            + (report.mode == .postcopy ? " with post-copy" : "") + " in \(duration(report.totalMs))\(downtime), \(Quantity.bytes(report.memoryBytes)) of memory\(disks)\(throttle)"]
        if report.persistent {
            lines.append("Defined on \(report.to.printable)\(report.autostart ? " with autostart" : ""), and not on \(report.from.printable) any more")
        }
        lines += report.disks.sorted { $0.key < $1.key }.map { "Disk \($0.key.printable): \($0.value.printable) on \(report.to.printable)" }
        return (lines + report.warnings.map(\.printable)).joined(separator: "\n")
    }

    static func rows(_ forecast: MigrationForecast) -> String {
        func rate(_ bytes: UInt64) -> String { "\(Quantity.bytes(bytes))/s" }
        let source = switch forecast.bandwidthSource {
        case .option: "as --bandwidth says"
        case .earlier: "what an earlier migration to \(forecast.to.printable) reached"
        case .assumed: "assumed: 1 Gbit/s; say what your network has with --bandwidth"
        }
        let converges = switch forecast.converges {
        case .yes: "yes"
        case .uncertain: "perhaps: not if the guest dirties the same pages over and over; --postcopy makes sure, a larger --downtime helps"
        case .no: "no: the guest dirties memory faster than it can be sent; use --postcopy, --auto-converge, a larger --downtime or --bandwidth"
        }
        func predicted(_ milliseconds: Double?) -> String { milliseconds.map { "about \(Quantity.duration(milliseconds: $0))" } ?? "without end" }
        let rows: [(String, String)] = [
            ("Domain", "\(forecast.domain.printable), \(forecast.from.printable) to \(forecast.to.printable)"),
            ("Memory", "\(Quantity.bytes(forecast.memoryBytes)), \(Quantity.bytes(forecast.residentBytes)) of it in use"),
            ("Disks to copy", Quantity.bytes(forecast.diskBytes)),
            ("Dirty rate", "\(forecast.dirtyBytesPerSecond == 0 ? "below 1MiB/s" : rate(forecast.dirtyBytesPerSecond)), measured for 1 s"),
            ("Bandwidth", "\(rate(forecast.bandwidthBytesPerSecond)), \(source)"),
            ("Converges", converges),
            ("Duration", predicted(forecast.durationMs) + (forecast.durationMs == nil ? "" : ", and a second or two for libvirt's own steps")),
            ("Downtime", forecast.downtimeMs.map { "about \(Quantity.duration(milliseconds: $0)) and what the devices need (limit \(forecast.downtimeLimitMs)ms)" } ?? "-"),
            ("To send", forecast.bytes.map { "about \(Quantity.bytes($0))" } ?? "without end"),
        ] + (forecast.throttlePercent > 0 ? [("Slowed down", "by \(forecast.throttlePercent) % at the end (auto-converge)")] : [])
        return rows.map { "\($0.0):".padding(toLength: 19, withPad: " ", startingAt: 0) + $0.1 + "\n" }.joined()
            + forecast.warnings.map { "\($0.printable)\n" }.joined()
    }
}
