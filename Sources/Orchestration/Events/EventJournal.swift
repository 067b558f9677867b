import ControlProtocol
import Foundation
import Platform

/// What happened on this host: the last events in memory, for `events`, and in two files below the state folder, for the next service.
///
/// `record` takes a lock and no more: whoever records may have a guest standing still. A thread of its own writes the file, and followers read
/// from memory at their own pace; one that falls behind loses the oldest events and is told how many.
public final class EventJournal: Sendable {
    /// Events that are kept. Two files of half as many hold them as well: some 3 MiB.
    public static let capacity = 8192
    /// Text is cut at these, so that one event has a few KiB at most.
    static let longestMessage = 2000, longestDetail = 400, mostDetails = 24

    struct State {
        /// In their order, without gaps: the last one's sequence number is `nextSequence` - 1.
        var kept: [ServiceEvent] = []
        var nextSequence: UInt64 = 1
        var counts = Dictionary(uniqueKeysWithValues: EventKind.counted.map { ($0, UInt64(0)) })
        /// Events below this number are in the file, or were given up.
        var written: UInt64 = 1
        var isFiled = false
    }

    private let state = Guarded(State())

    public init() {}

    /// Takes up what an earlier service left in `folder`, and goes on there. Without this call events are kept in memory only.
    public func open(folder: String) throws {
        let file = EventFile(path: "\(folder)/events.jsonl")
        let earlier = try file.load()
        state.change { state in
            // What was recorded before the call comes after what the file has.
            let first = (earlier.last?.sequence ?? 0) + 1
            let fresh = state.kept.enumerated().map { index, event in
                var event = event
                event.sequence = first + UInt64(index)
                return event
            }
            state.kept = Array((Self.withoutGaps(earlier) + fresh).suffix(Self.capacity))
            state.nextSequence = first + UInt64(fresh.count)
            state.written = first
            state.isFiled = true
        }
        startThread("events") { [weak self] in
            while let self { write(to: file) }
        }
    }

    /// The part at the end whose numbers follow each other: a file that somebody edited, or that lost lines, has others.
    private static func withoutGaps(_ events: [ServiceEvent]) -> ArraySlice<ServiceEvent> {
        var start = events.count
        while start > 0, start == events.count || events[start - 1].sequence + 1 == events[start].sequence { start -= 1 }
        return events[start...]
    }

    // MARK: Recording

    /// Notes that something happened. `details`: names in snake_case with their unit (`outage_ms`), for programs.
    @discardableResult
    public func record(kind: EventKind, domain: String? = nil, uuid: String? = nil, message: String, details: [String: String] = [:]) -> ServiceEvent {
        var event = ServiceEvent(sequence: 0, time: Timestamp.now, kind: kind, domain: domain, uuid: uuid, message: String(message.prefix(Self.longestMessage)),
                                 details: Dictionary(uniqueKeysWithValues: details.sorted { $0.key < $1.key }.prefix(Self.mostDetails).map {
                                     ($0.key, String($0.value.prefix(Self.longestDetail)))
                                 }))
        state.change { state in
            event.sequence = state.nextSequence
            state.nextSequence += 1
            state.counts[kind, default: 0] += 1
            state.kept.append(event)
            // By the hundred, because the rest moves each time.
            if state.kept.count >= Self.capacity + 256 { state.kept.removeFirst(256) }
        }
        return event
    }

    /// Runs `body`; what it throws is noted as an event of that kind.
    public func noting<R>(_ kind: EventKind, domain: String?, _ body: () throws -> R) rethrows -> R {
        do { return try body() } catch {
            record(kind: kind, domain: domain, message: "\(error)")
            throw error
        }
    }

    /// Events by kind since the service began.
    public var counts: [EventKind: UInt64] { state.read { $0.counts } }

    // MARK: Reading

    /// What to pass to `next` to get events from a time on (ISO 8601 UTC; nil: all), or the last few.
    public func cursor(since: String?, last: Int = .max) -> UInt64 {
        state.read { state in
            let events = since.map { since in state.kept.filter { $0.time >= since } } ?? state.kept
            return (events.suffix(last).first?.sequence ?? state.nextSequence) - 1
        }
    }

    /// Up to `limit` events after the one with the number `cursor`, waiting for the first until the deadline. `lost`: how many before them are not kept
    /// any more. `cursor`: for the next call. Events that `matches` leaves out count towards neither.
    public func next(after cursor: UInt64, limit: Int, until deadline: MonotonicTime, matches: (ServiceEvent) -> Bool = { _ in true })
        -> (events: [ServiceEvent], lost: UInt64, cursor: UInt64) {
        let found: (events: [ServiceEvent], lost: UInt64, cursor: UInt64)? = state.wait(until: deadline) { state in
            let first = state.nextSequence - UInt64(state.kept.count)
            // A number from a journal that is gone: only what comes is new.
            let after = min(cursor, state.nextSequence - 1)
            guard after + 1 < state.nextSequence else { return nil }
            let lost = first > after + 1 ? first - after - 1 : 0
            let part = state.kept[Int(max(after + 1, first) - first)...].prefix(limit)
            return (part.filter(matches), lost, part.last?.sequence ?? after)
        }
        return found ?? ([], 0, min(cursor, state.read { $0.nextSequence - 1 }))
    }

    // MARK: The file

    private func write(to file: EventFile) {
        let batch: [ServiceEvent]? = state.wait(until: MonotonicTime.now.adding(milliseconds: 5000)) { state in
            guard state.written < state.nextSequence else { return nil }
            let first = state.nextSequence - UInt64(state.kept.count)
            return Array(state.kept[Int(max(state.written, first) - first)...].prefix(256))
        }
        guard let last = batch?.last, let batch else { return }
        file.append(batch)
        state.change { $0.written = last.sequence + 1 }
    }

    /// Waits until all that was recorded is in the file, or the deadline has passed.
    public func flush(until deadline: MonotonicTime) {
        _ = state.wait(until: deadline) { $0.written == $0.nextSequence || !$0.isFiled ? true : nil }
    }
}
