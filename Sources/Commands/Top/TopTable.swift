import ControlProtocol
import Foundation
import Platform

/// What `top` shows: the difference between two answers to `status`, as rates.
struct TopTable {
    struct Snapshot: Sendable {
        var status: StatusReport
        var at: MonotonicTime
    }

    enum SortKey: String, CaseIterable {
        case name, state, rpo, lag, pause, dirtied, sent

        /// What is typed for it.
        var letter: Character { self == .sent ? "t" : rawValue.first ?? "?" }
    }

    struct Row: Equatable {
        var domain: DomainStatus
        /// Per second; nil: it cannot be told from these two answers.
        var epochs: Double?, dirtied: Double?, sent: Double?, disk: Double?
        /// Part of the time that epochs stop the guest, 0 to 1.
        var stopped: Double?
        /// Its shadows one by one, when there are several; the figures above are of the best one.
        var shadows: [Shadow] = []

        struct Shadow: Equatable {
            var status: ShadowStatus
            /// Epochs (those that a merged one stands for count as well) and bytes per second; nil: it cannot be told.
            var epochs: Double?, sent: Double?
        }

        static func == (a: Row, b: Row) -> Bool {
            a.domain.uuid == b.domain.uuid && a.domain.role == b.domain.role && a.epochs == b.epochs && a.dirtied == b.dirtied && a.sent == b.sent && a.disk == b.disk
                && a.stopped == b.stopped && a.shadows == b.shadows
        }
    }

    static func rows(_ before: Snapshot?, _ now: Snapshot, sortedBy key: SortKey) -> [Row] {
        now.status.domains.map { domain in
            let old = before?.status.domains.first { $0.uuid == domain.uuid && $0.role == domain.role && ($0.peer == domain.peer || $0.role == .primary) }
            return row(domain, old, seconds: before.map { now.at.milliseconds(since: $0.at) / 1000 } ?? 0)
        }.sorted { isBefore($0, $1, key) }
    }

    private static func row(_ domain: DomainStatus, _ old: DomainStatus?, seconds: Double) -> Row {
        // A counter that fell belongs to another worker.
        func rate(_ now: UInt64?, _ then: UInt64?) -> Double? {
            guard let now, let then, now >= then, seconds > 0 else { return nil }
            return Double(now - then) / seconds
        }
        var row = Row(domain: domain)
        row.epochs = domain.role == .primary ? rate(domain.counters?.epochsCaptured, old?.counters?.epochsCaptured) : rate(domain.committedEpoch, old?.committedEpoch)
        row.dirtied = domain.role == .primary ? rate(domain.bytesDirtied, old?.bytesDirtied) : nil
        row.sent = rate(domain.bytesSent, old?.bytesSent)
        row.disk = rate(domain.diskBytesSent, old?.diskBytesSent)
        if domain.role == .primary, let now = domain.counters?.pauseMsTotal, let then = old?.counters?.pauseMsTotal, now >= then, seconds > 0 {
            row.stopped = min(1, (now - then) / 1000 / seconds)
        }
        guard let shadows = domain.shadows, shadows.count > 1 else { return row }
        row.shadows = shadows.map { shadow in
            let before = old?.shadows?.first { $0.peer == shadow.peer }
            return Row.Shadow(status: shadow, epochs: rate(shadow.committedEpoch, before?.committedEpoch), sent: rate(shadow.bytesSent, before?.bytesSent))
        }
        return row
    }

    /// By name upwards, by all else what is worst first.
    private static func isBefore(_ a: Row, _ b: Row, _ key: SortKey) -> Bool {
        func lag(_ bytes: UInt64, _ epochs: UInt64) -> Double { Double(bytes) + Double(epochs) / 1e6 }
        func value(_ row: Row) -> Double {
            switch key {
            case .name: 0
            case .state: gravity(row.domain.state)
            // Of several shadows the worst one is what needs a look.
            case .rpo: row.shadows.compactMap(\.status.rpoMs).max() ?? row.domain.rpoMs ?? -1
            case .lag: row.shadows.map { lag($0.status.lagBytes, $0.status.lagEpochs) }.max() ?? lag(row.domain.lagBytes, row.domain.lagEpochs)
            case .pause: row.domain.pauseMsMedian
            case .dirtied: row.dirtied ?? -1
            case .sent: row.sent ?? -1
            }
        }
        let (first, second) = (value(a), value(b))
        return first != second ? first > second : (a.domain.domain, a.domain.uuid, a.domain.peer) < (b.domain.domain, b.domain.uuid, b.domain.peer)
    }

    private static func gravity(_ state: ProtectionState) -> Double {
        switch state {
        case .inDoubt: 6
        case .degraded: 5
        case .swapping: 4
        case .syncing: 3
        case .suspended: 2
        case .failedOver: 1
        case .protected: 0
        }
    }

    // MARK: Text

    /// `shadow-virt top  12:00:01 UTC  host a  2 guests here, 1 shadow  2 protected, 1 degraded`
    static func summary(_ status: StatusReport) -> String {
        let shadows = status.domains.filter { $0.role == .shadow }.count
        let states = ProtectionState.allCases.compactMap { state -> String? in
            let count = status.domains.filter { $0.state == state }.count
            return count == 0 ? nil : "\(count) \(state.rawValue)"
        }
        let clock = status.time.dropFirst(11).prefix(8)
        let sides = "\(Quantity.count(status.domains.count - shadows, "guest")) here, \(Quantity.count(shadows, "shadow"))"
        return (["shadow-virt top", "\(clock) UTC", "host \(status.host.printable)", sides] + (states.isEmpty ? [] : [states.joined(separator: ", ")]))
            .joined(separator: "  ")
    }

    static func table(_ rows: [Row], colour: Bool) -> String {
        var table = TextTable(columns: [
            .init("DOMAIN"), .init("ROLE"), .init("PEER"), .init("STATE"), .init("EPOCH/S", .right), .init("PAUSE", .right), .init("P99", .right),
            .init("%STOP", .right), .init("LAG", .right), .init("RPO", .right), .init("DIRTY/S", .right), .init("SENT/S", .right), .init("DISK/S", .right),
        ])
        for row in rows {
            let domain = row.domain
            let hasPause = domain.role == .primary && domain.epoch > 0
            func number(_ value: Double?) -> TextTable.Cell { .init(value.map { String(format: "%.1f", $0) } ?? "-") }
            func bytes(_ rate: Double?) -> TextTable.Cell { .init(rate.map { Quantity.bytes(UInt64($0)) } ?? "-") }
            func duration(_ milliseconds: Double?) -> TextTable.Cell { .init(milliseconds.map { Quantity.duration(milliseconds: $0) } ?? "-") }
            table.add([
                .init(domain.domain.printable), .init(domain.role.rawValue), .init(domain.peer.printable),
                .init(domain.state.rawValue, Renderer.style(domain.state)), number(row.epochs),
                duration(hasPause ? domain.pauseMsMedian : nil), duration(hasPause ? domain.pauseMsP99 : nil), number(row.stopped.map { $0 * 100 }),
                .init("\(domain.lagEpochs)/\(Quantity.bytes(domain.lagBytes))"), duration(domain.rpoMs),
                bytes(row.dirtied), bytes(row.sent), bytes(row.disk),
            ])
            for shadow in row.shadows {
                table.add([
                    .init(""), .init("shadow"), .init(shadow.status.peer.printable), .init(shadow.status.state.rawValue, Renderer.style(shadow.status.state)), number(shadow.epochs),
                    .init(""), .init(""), .init(""), .init("\(shadow.status.lagEpochs)/\(Quantity.bytes(shadow.status.lagBytes))"), duration(shadow.status.rpoMs),
                    .init(""), bytes(shadow.sent), .init(""),
                ])
            }
        }
        return table.render(colour: colour)
    }

    static let keys = "q quit; sort by " + SortKey.allCases.map { "\($0.letter) \($0.rawValue)" }.joined(separator: ", ")
}
