import Foundation
import Platform

/// What the disks say about themselves (SMART), as `smartctl --json` of smartmontools 7 or later reports it: what the unit shadow-virt-smart put aside, which
/// has the rights that this service lacks; else what a smartctl says that is asked here.
struct DiskHealth: Sendable {
    /// A disk that sleeps, or a dead one behind a controller, takes seconds.
    static let limitMs = 10_000.0
    static let mostDisks = 16
    static let toolEveryMs = 600_000.0, reportsEveryMs = 60_000.0
    static let program = ["/usr/sbin/smartctl", "/usr/bin/smartctl", "/usr/local/sbin/smartctl"]

    /// Where examples/shadow-virt-smart.service puts its reports, a DISK.json each.
    static let reports = "/run/shadow-virt-smart"
    /// Two of its looks, and what the disks take; older ones are of a unit that does not run any more.
    static let reportLastsSeconds = 1500.0
    static let mostReportBytes = 1 << 20

    private let files: HostFiles
    init(_ files: HostFiles) { self.files = files }

    static var installed: String? { program.first { FileManager.default.isExecutableFile(atPath: $0) } }

    /// Names of whole disks, as `sda` and `nvme0n1`: no loops, no RAM, nothing made of others.
    var disks: [String] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: files.root + "/sys/block")) ?? []
        return Array(names.filter { $0.hasPrefix("sd") || $0.hasPrefix("nvme") || $0.hasPrefix("hd") }.sorted().prefix(Self.mostDisks))
    }

    /// Reads every report, or asks every disk when there is none and `smartctl` is there; blocks for as long as they take.
    func look(_ smartctl: String?) -> [String: Double] {
        var values: [String: Double] = [:]
        let found = putAside
        if !found.isEmpty || smartctl == nil {
            for (disk, report) in found { report.add(to: &values, disk) }
            return values
        }
        guard let smartctl else { return values }
        for disk in disks {
            // Nothing is woken up for this; the exit status is a mask of findings, not of success.
            guard let captured = try? Subprocess.capture(smartctl, arguments: ["--json", "--nocheck=standby", "-H", "-A", "/dev/\(disk)"], limitMs: Self.limitMs),
                  let report = try? JSONDecoder().decode(SmartReport.self, from: Data(captured.output)) else { continue }
            report.add(to: &values, disk)
        }
        return values
    }
}

extension DiskHealth {
    /// Fresh reports of disks that are there, in their order.
    private var putAside: [(disk: String, report: SmartReport)] {
        disks.compactMap { disk in
            let path = "\(files.root)\(Self.reports)/\(disk).json"
            guard let facts = try? FileManager.default.attributesOfItem(atPath: path), let size = facts[.size] as? Int, size <= Self.mostReportBytes,
                  let date = facts[.modificationDate] as? Date, abs(date.timeIntervalSinceNow) < Self.reportLastsSeconds,
                  let data = FileManager.default.contents(atPath: path), let report = try? JSONDecoder().decode(SmartReport.self, from: data) else { return nil }
            return (disk, report)
        }
    }

    /// From one look to the next: reading a few files costs nothing, asking disks does. Nil: there is nothing to look at.
    var everyMs: Double? {
        if FileManager.default.fileExists(atPath: files.root + Self.reports) { return Self.reportsEveryMs }
        return Self.installed == nil ? nil : Self.toolEveryMs
    }
}

/// The part of smartctl's JSON that is used. Absent members are absent facts.
struct SmartReport: Decodable {
    struct Status: Decodable { var passed: Bool? }
    struct Temperature: Decodable { var current: Double? }
    struct Attribute: Decodable {
        struct Raw: Decodable { var value: Double? }
        var id: Int?
        var raw: Raw?
    }
    struct Attributes: Decodable { var table: [Attribute]? }
    struct NVMe: Decodable {
        var critical_warning: Int?
        var percentage_used: Double?
        var media_errors: Double?
    }
    var smart_status: Status?
    var temperature: Temperature?
    var ata_smart_attributes: Attributes?
    var nvme_smart_health_information_log: NVMe?

    func add(to values: inout [String: Double], _ disk: String) {
        let nvme = nvme_smart_health_information_log
        let passed = smart_status?.passed.map { $0 && (nvme?.critical_warning ?? 0) == 0 }
        if let passed {
            values.note("host_disk_smart_failed_count@\(disk)", passed ? 0 : 1)
            values.note("host_disk_smart_failed_count", (values["host_disk_smart_failed_count"] ?? 0) + (passed ? 0 : 1))
        }
        values.noteWorst("host_disk_temperature_celsius", of: disk, temperature?.current)
        values.noteWorst("host_disk_wear_percent", of: disk, nvme?.percentage_used)
        values.noteWorst("host_disk_media_errors_count", of: disk, nvme?.media_errors ?? attribute(187))
        values.noteWorst("host_disk_reallocated_sectors_count", of: disk, attribute(5))
        values.noteWorst("host_disk_pending_sectors_count", of: disk, attribute(197))
    }

    private func attribute(_ id: Int) -> Double? { ata_smart_attributes?.table?.first { $0.id == id }?.raw?.value }
}
