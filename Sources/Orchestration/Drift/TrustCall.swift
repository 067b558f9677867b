import ControlProtocol
import Foundation
import Platform

/// What one host tells another about trust, in a `trust` request.
struct TrustCall: Codable, Sendable {
    enum Action: String, Codable, Sendable {
        /// A guest is to come by itself: anything against it? From here on it counts as swapped, so that it does not come back by itself within the hour.
        case take
        /// The asking host is not to be trusted, for a reason.
        case suspect
        /// An administrator trusts `host` again.
        case clear
        /// Make a bundle of what there is to know.
        case diagnose
        /// Which bundles there are; a part of the one called `bundle`, from `offset` on.
        case bundles, bundle
    }
    var action: Action
    var host: String?
    var reason: String?
    var bundle: String?
    var offset: Int?

    init(_ action: Action, host: String? = nil, reason: String? = nil) { (self.action, self.host, self.reason) = (action, host, reason) }
}

extension PeerRequest {
    init(_ call: TrustCall, host: String, uuid: String? = nil, domain: String? = nil) {
        self.init(.trust, host: host, uuid: uuid, domain: domain)
        trust = call
    }
}

extension Registry {
    /// Another host's `trust` request.
    func answerTrust(_ request: PeerRequest) throws -> PeerResponse {
        guard let call = request.trust else { throw ControlFailure("The request does not say what it is about") }
        let marks = environment.marks
        switch call.action {
        case .take:
            if let obstacle = obstacleToGuests { throw ControlFailure("\(environment.hostName) takes no guest that comes by itself: \(obstacle)") }
            if let uuid = request.uuid { try marks.noteSwap(uuid.lowercased(), DriftKeeper.now) }
        case .suspect:
            try marks.suspect(request.host, call.reason ?? "it says so itself")
            environment.events.record(kind: "host_suspect", message: "\(request.host) is suspect: \(call.reason ?? "it says so itself")", details: ["host": request.host])
        case .clear:
            guard let host = call.host else { throw ControlFailure("The request names no host") }
            try clearMark(host, byOrderOf: request.host)
        case .diagnose:
            return PeerResponse(state: try diagnose("asked for by \(request.host)"))
        case .bundles, .bundle:
            return try answerBundles(call)
        }
        return PeerResponse()
    }

    /// Why no guest should come to this host by itself; nil: nothing is known.
    private var obstacleToGuests: String? {
        if let mark = environment.marks.suspicion(environment.hostName) { return "it is suspect since \(mark.since) (\(mark.reason))" }
        if drains.isDraining { return "it is being drained" }
        guard let keeper = drift else { return nil }
        if let critical = keeper.hardwareHere.critical { return "its hardware reports \(critical)" }
        let accused = keeper.watches.read { $0.values.first { $0.verdict?.accusesPrimary == true && $0.score != nil }?.domain }
        return accused.map { "it drifts itself, as \($0) shows" }
    }

    func clearMark(_ host: String, byOrderOf whom: String) throws {
        let isThisHost = environment.isThisHost(host)
        guard try environment.marks.clear(host, isThisHost: isThisHost, now: DriftKeeper.now) else { return }
        Log.info("\(host) is trusted again, by order of \(whom)")
        environment.events.record(kind: "host_cleared", message: "\(host) is trusted again", details: ["host": host, "by": whom])
    }

    // MARK: Administrators

    public func hosts() -> HostsReport {
        let marks = environment.marks, own = environment.hostName
        return HostsReport(host: own, hosts: ([own] + environment.configuration.peers.map(\.name)).map {
            HostsReport.Host(name: $0, isThisHost: $0 == own, suspect: marks.suspicion($0))
        })
    }

    /// Trusts a host again, here and on all others. Returns what an administrator should know.
    public func clearHost(_ host: String) throws -> String {
        let name = environment.isThisHost(host) ? environment.hostName : try environment.peer(host).name
        try clearMark(name, byOrderOf: "an administrator on \(environment.hostName)")
        let request = PeerRequest(TrustCall(.clear, host: name), host: environment.hostName)
        let failed = environment.configuration.peers.compactMap { peer -> String? in
            do {
                _ = try environment.client(of: peer).ask(request, timeoutMs: 3000)
                return nil
            } catch { return "\(peer.name) was not told: \(error)" }
        }
        return (["\(name) is trusted again"] + failed).joined(separator: ". ")
    }
}
