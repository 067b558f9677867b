import ControlProtocol
import Foundation
import Libvirt
import Platform

/// A guest on its way back to the host that it left for maintenance, on the host where it runs meanwhile. The other host asks for it and goes on asking until
/// it is there: so nothing depends on one long connection.
final class Homecoming: Sendable {
    enum State: Sendable {
        case underWay(String), done(String), failed(ControlFailure)
    }

    /// Whoever asks does so every half second, and gives up after half a minute: a result that is older was about an earlier time.
    private static let resultLastsMs = 60_000.0

    let host: String
    let state = Guarded(State.underWay("beginning"))
    private let endedAt = Guarded<MonotonicTime?>(nil)

    init(host: String) { self.host = host }

    func end(_ result: Result<String, any Error>) {
        endedAt.change { $0 = .now }
        state.change { state in
            switch result {
            case .success(let text): state = .done(text)
            case .failure(let error): state = .failed((error as? ControlFailure) ?? ControlFailure("\(error)"))
            }
        }
    }

    var isStale: Bool { endedAt.read { $0.map { MonotonicTime.now.milliseconds(since: $0) > Self.resultLastsMs } ?? false } }
}

extension Registry {
    /// The first copy of a large disk takes its time; beyond this somebody should look.
    private static let longestCopyMs = 6.0 * 3_600_000
    private static let longestSwapMs = 300_000.0

    /// Begins it, or tells how far it is: `isLive` is false once the guest runs on the host that asks.
    func sendBack(_ request: PeerRequest) throws -> PeerResponse {
        let uuid = (request.uuid ?? "").lowercased()
        try checkListsPeer(request.host)
        if let known = homecomings.read({ $0[uuid] }), known.host == request.host, !known.isStale {
            switch known.state.read({ $0 }) {
            case .underWay(let text): return PeerResponse(state: text, isLive: true)
            case .done(let text):
                homecomings.change { $0[uuid] = nil }
                return PeerResponse(state: text, isLive: false)
            case .failed(let failure):
                homecomings.change { $0[uuid] = nil }
                throw failure
            }
        }
        guard let domain = try? environment.connect().lookup(uuid: uuid), try domain.isActive(), shadow(uuid).map({ $0.phase == .running }) ?? true else {
            throw ControlFailure("\(request.domain ?? uuid) does not run on \(environment.hostName)")
        }
        let homecoming = Homecoming(host: request.host)
        let other: String? = homecomings.change { homecomings in
            if let known = homecomings[uuid], case .underWay = known.state.read({ $0 }) { return known.host }
            homecomings[uuid] = homecoming
            return nil
        }
        if let other {
            guard other != request.host else { return PeerResponse(state: "beginning", isLive: true) }
            throw ControlFailure("\(request.domain ?? uuid) is on its way from \(environment.hostName) to \(other)", advice: "Wait until it is there, then try again")
        }
        startThread("homecoming") { [self] in
            keeper.hold(uuid)
            defer { keeper.release(uuid) }
            homecoming.end(Result { try bringHome(domain, homecoming) })
        }
        return PeerResponse(state: "beginning", isLive: true)
    }

    private func bringHome(_ domain: Domain, _ homecoming: Homecoming) throws -> String {
        let policy = try PolicyStore(domain: domain).read()
        if primary(domain.uuid).map({ $0.board.state != .failedOver && $0.slot(homecoming.host) != nil }) != true {
            guard let policy, policy.isEnabled else { return try migrateHome(domain, homecoming) }
            homecoming.state.change { $0 = .underWay("making its shadow on \(homecoming.host)") }
            if let other = primary(domain.uuid), other.board.state != .failedOver {
                try unprotect(domain.uuid, deadline: MonotonicTime.now.adding(milliseconds: 60_000))
            }
            _ = try protect(domain.uuid, to: homecoming.host, ProtectRequest(policy))
        }
        guard let protection = primary(domain.uuid) else { throw ControlFailure("The protection of \(domain.name) to \(homecoming.host) has ended") }
        try awaitShadow(protection, homecoming)
        homecoming.state.change { $0 = .underWay("swapping") }
        let report = try swap(domain.uuid, to: homecoming.host, deadline: MonotonicTime.now.adding(milliseconds: Self.longestSwapMs))
        return "swapped back from \(environment.hostName), outage \(Int(report.outageMs.rounded())) ms"
    }

    private func awaitShadow(_ protection: PrimaryProtection, _ homecoming: Homecoming) throws {
        let limit = MonotonicTime.now.adding(milliseconds: Self.longestCopyMs)
        while limit > .now {
            switch protection.settled(until: MonotonicTime.now.adding(milliseconds: 1000)) {
            case .protected where protection.board.state == .protected: return
            case .refused(let reason):
                _ = try? unprotect(protection.domain.uuid, deadline: MonotonicTime.now.adding(milliseconds: 30_000))
                throw ControlFailure("No shadow of \(protection.domain.name) could be made on \(homecoming.host): \(reason)")
            case .ended(let reason): throw ControlFailure("The protection of \(protection.domain.name) ended: \(reason)")
            case .protected, nil:
                let reason = protection.board.current.reason
                homecoming.state.change { $0 = .underWay(reason.isEmpty ? "waiting for its shadow" : reason) }
                usleep(100_000)
            }
        }
        throw ControlFailure("\(protection.domain.name) is not protected to \(homecoming.host) yet", advice: "`shadow-virt status` shows how far it is; try again later")
    }

    /// Without a policy nobody knows how it would be protected: it goes as it could have come.
    private func migrateHome(_ domain: Domain, _ homecoming: Homecoming) throws -> String {
        if let other = primary(domain.uuid), other.board.state != .failedOver {
            throw ControlFailure("\(domain.name) is protected to \(other.peerName), and has no policy",
                                 advice: "On \(environment.hostName): `shadow-virt unprotect \(domain.name)`, then try again")
        }
        let answer = try migrate(domain.uuid, to: homecoming.host, MigrationOptions(), pool: nil, discardStale: false, onBegin: { _ in }, progress: { progress in
            homecoming.state.change { $0 = .underWay(progress.message) }
        })
        guard case .moved(let report) = answer else { throw ControlFailure("libvirt predicted where it was to move") }
        return "moved back from \(environment.hostName) by live migration, downtime \(report.downtimeMs.map { "\(Int($0)) ms" } ?? "unknown")"
    }
}
