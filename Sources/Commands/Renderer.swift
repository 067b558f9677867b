import ControlProtocol
import Foundation

/// How answers are printed.
enum OutputFormat: String, CaseIterable {
    case table, json
}

/// What a command has to say on stdout. `detail` asks for everything about one domain.
enum Report {
    case status(StatusReport, detail: Bool)
    case handover(HandoverReport)
    case doctor(DoctorReport)
    case migration(MigrationReport)
    case forecast(MigrationForecast)
    case policy(PolicyReport)
    case placement(PlacementReport)
    case drain(DrainReport)
    case kpi(KPIReport)
    case inside(GuestInside)
    case drift(DriftReport)
    case hosts(HostsReport)
    case bundles(BundleList)
    case health(HealthReport, allEvents: Bool)
    case done(String)
    case failure(ControlFailure)
}

/// The one place where answers become text, for every command and format.
struct Renderer {
    var format: OutputFormat
    var colour = false
    var width = 80

    func render(_ report: Report) throws -> String {
        switch format {
        case .json: try json(report)
        case .table: table(report)
        }
    }

    // MARK: JSON: the service's own objects, so that the keys are those of `ControlProtocol`

    private struct Done: Encodable {
        var schema = ControlProtocolVersion.schema
        var done: String
    }

    private struct Failure: Encodable {
        var schema = ControlProtocolVersion.schema
        var failure: ControlFailure
    }

    private func json(_ report: Report) throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
        let data = switch report {
        case .status(let status, _): try encoder.encode(status)
        case .handover(let handover): try encoder.encode(handover)
        case .doctor(let doctor): try encoder.encode(doctor)
        case .migration(let migration): try encoder.encode(migration)
        case .forecast(let forecast): try encoder.encode(forecast)
        case .policy(let policy): try encoder.encode(policy)
        case .placement(let placement): try encoder.encode(placement)
        case .drain(let drain): try encoder.encode(drain)
        case .kpi(let report): try encoder.encode(report)
        case .inside(let inside): try encoder.encode(inside)
        case .drift(let report): try encoder.encode(report)
        case .hosts(let report): try encoder.encode(report)
        case .bundles(let list): try encoder.encode(list)
        case .health(let health, _): try encoder.encode(health)
        case .done(let text): try encoder.encode(Done(done: text))
        case .failure(let failure): try encoder.encode(Failure(failure: failure))
        }
        return String(decoding: data, as: UTF8.self)
    }

    // MARK: Tables

    private func table(_ report: Report) -> String {
        switch report {
        case .status(let status, detail: true): status.domains.map(detail).joined(separator: "\n")
        case .status(let status, detail: false): list(status.domains)
        case .handover(let handover): sentence(handover)
        case .doctor(let doctor): findings(doctor.findings)
        case .migration(let migration): MigrationText.sentence(migration)
        case .forecast(let forecast): MigrationText.rows(forecast)
        // For a file, as it is.
        case .policy(let policy): policy.xml ?? ""
        case .placement(let placement): PlacementText.table(placement, colour: colour)
        case .drain(let drain): PlacementText.table(drain, colour: colour)
        case .kpi(let report): KPIText.table(report, colour: colour)
        case .inside(let inside): InsideText(colour: colour).text(inside)
        case .drift(let report): DriftText(colour: colour).text(report)
        case .hosts(let report): HostsCommand.text(report, colour: colour)
        case .bundles(let list): DiagnoseCommand.text(list, colour: colour)
        case .health(let health, let all): HealthText(colour: colour, eventsSince: all ? nil : Date().timeIntervalSince1970 - 86400).text(health)
        case .done(let text): text.printable
        case .failure: "" // Said on stderr.
        }
    }

    private func list(_ domains: [DomainStatus]) -> String {
        guard !domains.isEmpty else { return "" }
        var table = TextTable(columns: [
            .init("DOMAIN"), .init("ROLE"), .init("PEER"), .init("ENGINE"), .init("STATE"), .init("EPOCH", .right),
            .init("INTERVAL", .right), .init("PAUSE", .right), .init("LAG", .right), .init("LAST-COMMIT", .right), .init("RPO", .right),
        ])
        for domain in domains {
            // The shadow's side has no pause: nothing runs there.
            let pause = domain.role == .primary && domain.epoch > 0 ? Quantity.duration(milliseconds: domain.pauseMsMedian) : "-"
            table.add([
                .init(domain.domain.printable), .init(domain.role.rawValue), .init(domain.peer.printable), .init(domain.engine.printable),
                .init(domain.state.rawValue, Self.style(domain.state)), .init("\(domain.epoch)"),
                .init(Quantity.duration(milliseconds: domain.intervalMs)), .init(pause),
                .init("\(domain.lagEpochs)/\(Quantity.bytes(domain.lagBytes))"), .init(age(domain.lastCommitAgeMs)), .init(age(domain.rpoMs)),
            ], notes: notes(domain))
            // The best of several stands above.
            for shadow in (domain.shadows ?? []) where domain.shadows?.count ?? 0 > 1 {
                table.add([
                    .init(""), .init("shadow"), .init(shadow.peer.printable), .init(""), .init(shadow.state.rawValue, Self.style(shadow.state)), .init("\(shadow.committedEpoch)"),
                    .init(shadow.multiple > 1 ? "x\(shadow.multiple)" : ""), .init(""), .init("\(shadow.lagEpochs)/\(Quantity.bytes(shadow.lagBytes))"),
                    .init(age(shadow.lastCommitAgeMs)), .init(age(shadow.rpoMs)),
                ])
            }
        }
        return table.render(colour: colour)
    }

    private func notes(_ domain: DomainStatus) -> [String] {
        let disks = (domain.disks ?? []).filter { $0.state == .syncing || $0.state == .failed }.map { "disk \($0.target.printable): \(progress($0))" }
        return [syncProgress(domain).map { "first copy: \($0)" }].compactMap { $0 } + disks + (domain.reason.isEmpty ? [] : [domain.reason.printable])
    }

    private func progress(_ disk: DiskStatus) -> String {
        switch disk.state {
        case .syncing: disk.totalBytes > 0 ? Quantity.progress(disk.syncedBytes, of: disk.totalBytes) : disk.state.rawValue
        case .waiting, .ready, .failed, .shared: disk.state.rawValue
        }
    }

    private func rows(_ disks: [DiskStatus]) -> [(label: String, value: String?)] {
        disks.map { disk in
            let size = disk.state != .syncing && disk.totalBytes > 0 ? ", \(Quantity.bytes(disk.totalBytes))" : ""
            return ("Disk \(disk.target.printable)", progress(disk) + size + (disk.replica.map { ", replica \($0.printable)" } ?? ""))
        }
    }

    private func syncProgress(_ domain: DomainStatus) -> String? {
        guard domain.state == .syncing, let done = domain.syncBytesDone, let total = domain.syncBytesTotal, total > 0 else { return nil }
        return Quantity.progress(done, of: total)
    }

    private func detail(_ domain: DomainStatus) -> String {
        func duration(_ milliseconds: Double) -> String { Quantity.duration(milliseconds: milliseconds) }
        let isPrimary = domain.role == .primary
        let interval = duration(domain.intervalMs), configured = duration(domain.configuredIntervalMs)
        let state = paint(domain.state.rawValue, Self.style(domain.state))
        let epoch = isPrimary ? "\(domain.epoch) captured, \(domain.committedEpoch) committed" : "\(domain.committedEpoch) committed"
        let pause = "\(duration(domain.pauseMsMedian)) median, \(duration(domain.pauseMsP99)) p99"
        let share = Quantity.percent(domain.bytesSent, of: domain.bytesDirtied).map { " (\($0) of what was dirtied)" }
        let head: [(label: String, value: String?)] = [
            ("Domain", domain.domain.printable),
            ("UUID", domain.uuid.printable),
            ("Role", domain.role.rawValue),
            ("Peer", domain.peer.printable),
            ("Engine", domain.engine.printable + (domain.engineReason.map { " (\($0.printable))" } ?? "")),
            ("State", "\(state) since \(domain.since.printable)"),
            ("Reason", domain.reason.isEmpty ? nil : domain.reason.printable),
            ("First copy", syncProgress(domain)),
            ("Epoch", epoch),
            ("Interval", interval == configured ? interval : "\(interval) (configured \(configured))"),
            ("Why", domain.intervalReason?.printable),
            ("Drift", domain.driftScore.map { String(format: "%.2f", $0) + ($0 >= 1 ? ", an alarm" : "") }),
            ("Epochs per second", Quantity.trimmed(domain.epochsPerSecond)),
            ("Pause", isPrimary ? pause : nil),
            ("Lag", "\(Quantity.count(domain.lagEpochs, "epoch")), \(Quantity.bytes(domain.lagBytes))"),
            ("Last commit", domain.lastCommitAgeMs.map { "\(duration($0)) ago" } ?? "none yet"),
            ("RPO", age(domain.rpoMs)),
            ("Dirtied", Quantity.bytes(domain.bytesDirtied)),
            ("Sent", "\(Quantity.bytes(domain.bytesSent))\(share ?? "")"),
        ]
        let shadows = (domain.shadows ?? []).count > 1 ? (domain.shadows ?? []).map { ("Shadow on \($0.peer.printable)", Optional(row($0))) } : []
        let disks: [(label: String, value: String?)] = shadows + rows(domain.disks ?? []) + [
            ("Disk writes", domain.diskWrites.map { "\($0)" + (domain.diskBytesSent.map { ", \(Quantity.bytes($0)) sent" } ?? "") }),
        ]
        var text = ""
        for case (let label, let value?) in head + disks {
            text += "\(label):".padding(toLength: 19, withPad: " ", startingAt: 0) + value + "\n"
        }
        return text
    }

    private func row(_ shadow: ShadowStatus) -> String {
        let every = shadow.multiple > 1 ? ", every \(shadow.multiple) epochs" : ""
        return paint(shadow.state.rawValue, Self.style(shadow.state)) + ", epoch \(shadow.committedEpoch)\(every), lag \(Quantity.count(shadow.lagEpochs, "epoch")), "
            + "\(Quantity.bytes(shadow.lagBytes)), RPO \(age(shadow.rpoMs))" + (shadow.reason.isEmpty ? "" : ": \(shadow.reason.printable)")
    }

    private func sentence(_ handover: HandoverReport) -> String {
        let lost = switch handover.epochsLost {
        case nil: "what the primary did after it is lost"
        case 0?: "nothing lost"
        case let epochs?: "\(Quantity.count(epochs, "epoch")) lost"
        }
        let outage = Quantity.duration(milliseconds: handover.outageMs), activation = Quantity.duration(milliseconds: handover.activationMs)
        return "\(handover.domain.printable) now runs on \(handover.to.printable) (from \(handover.from.printable)): "
            + "epoch \(handover.epoch), \(lost), outage \(outage), activation \(activation)"
    }

    private func findings(_ findings: [Finding]) -> String {
        let checkWidth = findings.map(\.check.printable.count).max() ?? 0
        return findings.map { finding in
            let (word, style): (String, TextStyle) = switch finding.verdict {
            case .ok: ("ok", .good)
            case .warning: ("warning", .caution)
            case .failed: ("FAILED", .bad)
            }
            let check = finding.check.printable
            let gaps = [9 - word.count, checkWidth - check.count + 2].map { String(repeating: " ", count: $0) }
            var text = "\(paint(word, style))\(gaps[0])\(check)\(gaps[1])\(finding.detail.printable)"
            while text.last == " " { text.removeLast() }
            if !finding.advice.isEmpty {
                text += "\n" + TextWrap.wrap(finding.advice.printable, indent: 11, width: max(width, 60))
            }
            return text + "\n"
        }.joined()
    }

    private func age(_ milliseconds: Double?) -> String { milliseconds.map { Quantity.duration(milliseconds: $0) } ?? "-" }

    static func style(_ state: ProtectionState) -> TextStyle {
        switch state {
        case .protected: .good
        case .syncing, .suspended, .swapping: .caution
        case .degraded, .inDoubt: .bad
        case .failedOver: .plain
        }
    }

    private func paint(_ text: String, _ style: TextStyle) -> String { colour ? style.apply(text) : text }
}
