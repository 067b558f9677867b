import ControlProtocol
import Foundation
import Platform
import Telemetry

/// The last look at a pair, both its sides, which the shadow's host keeps as well: wherever the guest goes on, its history is there.
struct MirroredRow: Codable, Sendable, Equatable {
    var uuid: String
    var domain: String
    /// When it is sent, milliseconds: the two hosts' clocks need not agree.
    var ageMs: Double
    var values: [String: Double]

    /// More than a host measures; what a peer sends beyond that is not kept.
    private static let mostValues = 4096, longestName = 256, oldestMs = 60_000.0
    /// Of one request: its message stays below `MessageChannel.longestMessage`.
    static let mostRows = 512

    var isPlausible: Bool {
        UUID(uuidString: uuid) != nil && uuid == uuid.lowercased() && domain.utf8.count <= Self.longestName && (0...Self.oldestMs).contains(ageMs) && values.count <= Self.mostValues
            && values.allSatisfy { $0.key.utf8.count <= Self.longestName && $0.value.isFinite }
    }
}

/// What was measured of pairs at the last look, on its way to the shadows' hosts.
struct MirrorOutbox: Sendable {
    private var pairs: [PairSample] = []
    private var at = MonotonicTime.now

    init() {}

    init(_ pairs: [PairSample], at moment: MonotonicTime) { (self.pairs, at) = (pairs, moment) }

    /// For one host.
    func rows(for peer: String, now: MonotonicTime) -> [MirroredRow] {
        pairs.filter { $0.peer == peer }.prefix(MirroredRow.mostRows).map {
            MirroredRow(uuid: $0.uuid, domain: $0.domain, ageMs: now.milliseconds(since: at), values: $0.flat.values)
        }
    }
}

/// What came of others' pairs, until the telemetry thread, which alone writes series, takes it.
final class MirrorInbox: Sendable {
    private struct Arrival {
        var row: MirroredRow
        var at: MonotonicTime
    }
    private let arrivals = Guarded<[String: Arrival]>([:])

    func put(_ rows: [MirroredRow]) {
        let now = MonotonicTime.now
        arrivals.change { arrivals in
            for row in rows.prefix(MirroredRow.mostRows) where row.isPlausible && (arrivals.count < 2 * MirroredRow.mostRows || arrivals[row.uuid] != nil) {
                arrivals[row.uuid] = Arrival(row: row, at: now)
            }
        }
    }

    /// Those of `shadows`, with their times by this host's clock; others are dropped: a guest that runs here writes its own history.
    func take(of shadows: Set<String>, now: UInt64) -> [(uuid: String, label: String, sample: Sample)] {
        let moment = MonotonicTime.now
        let all = arrivals.change { arrivals in
            defer { arrivals = [:] }
            return arrivals
        }
        return all.values.filter { shadows.contains($0.row.uuid) }.map { arrival in
            let age = UInt64(max(0, arrival.row.ageMs + moment.milliseconds(since: arrival.at)))
            return (arrival.row.uuid, arrival.row.domain, Sample(time: now - min(now, age), values: arrival.row.values))
        }
    }
}
