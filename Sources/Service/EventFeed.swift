import ControlProtocol
import Foundation
import Orchestration
import Platform

/// Serves `events`: what is kept, and with `follow` what comes, for as long as the client takes it.
final class EventFeed: Sendable {
    /// Followers have connections that last; commands must find a free one all the same.
    static let mostFollowers = 16
    private static let batch = 200
    /// Within `ControlTiming.progressEveryMs`: so often a follower gets a sign of life.
    private static let signOfLifeMs = 4000.0

    private let journal: EventJournal
    private let followers = Guarded(0)

    private let identify: @Sendable (String) -> Registry.DomainIdentity?

    /// `identify`: who is meant by an id, a UUID or a name; nil: nobody who is there now.
    init(_ journal: EventJournal, identify: @escaping @Sendable (String) -> Registry.DomainIdentity? = { _ in nil }) {
        self.journal = journal
        self.identify = identify
    }

    /// Sends parts until it returns the last one. Throws when the client has gone.
    func serve(_ request: ControlRequest, _ send: (EventBatch) throws -> Void) throws -> EventBatch {
        let query = request.events ?? EventQuery()
        let isFollowing = query.follow == true
        if isFollowing, !followers.change({ count in
            guard count < Self.mostFollowers else { return false }
            count += 1
            return true
        }) { throw ControlFailure("\(Self.mostFollowers) clients follow the events already", advice: "End one of them") }
        defer { if isFollowing { followers.change { $0 -= 1 } } }

        let matches = filter(request.domain)
        var cursor = start(query, isFollowing: isFollowing)
        let end = journal.cursor(since: nil, last: 0)
        while true {
            let limit = isFollowing ? MonotonicTime.now.adding(milliseconds: Self.signOfLifeMs) : .now
            let part = journal.next(after: cursor, limit: Self.batch, until: limit, matches: matches)
            cursor = part.cursor
            var events = part.events
            if part.lost > 0 {
                events.insert(ServiceEvent(sequence: 0, time: Timestamp.now, kind: .lost, domain: nil, uuid: nil,
                                           message: "\(part.lost) events are not kept any more: they came faster than they were read",
                                           details: ["count": "\(part.lost)"]), at: 0)
            }
            if !isFollowing, cursor >= end { return EventBatch(events, isLast: true) }
            try send(EventBatch(events, isLast: false))
        }
    }

    /// Events of one domain. Those of domains that are gone are found by what they were called; an id is that of a domain that is there.
    private func filter(_ word: String?) -> (ServiceEvent) -> Bool {
        guard let word else { return { _ in true } }
        guard let domain = identify(word) else { return { $0.domain == word || $0.uuid == word.lowercased() } }
        // Refusals stand there by name only. By name earlier domains of that name are meant as well, by id or UUID this one alone.
        let byName = domain.name == word
        return { event in event.uuid.map { $0 == domain.uuid || (byName && event.domain == word) } ?? (event.domain == domain.name) }
    }

    private func start(_ query: EventQuery, isFollowing: Bool) -> UInt64 {
        if let after = query.after { return after }
        if let seconds = query.sinceSeconds {
            let from = Date().timeIntervalSince1970 - max(0, min(seconds, 1e10))
            return journal.cursor(since: Timestamp.format(seconds: max(0, Int(from)), milliseconds: max(0, Int((from - from.rounded(.down)) * 1000))))
        }
        return journal.cursor(since: nil, last: isFollowing ? 10 : .max)
    }
}
