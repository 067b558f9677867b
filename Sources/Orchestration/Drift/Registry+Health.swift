import ControlProtocol
import Foundation
import Platform

/// Hardware of this host and of the others, as their BMCs see it.
extension Registry {
    /// Where this host's state comes from; asked at each question, at once.
    public func setHealthSource(_ source: @escaping @Sendable () -> HealthReport) { healthSource.change { $0 = source } }

    /// This host's last reading; nil before the service has said where it comes from.
    public var ownHealth: HealthReport? { healthSource.read { $0 }?() }

    /// The state of `host`, this one or a peer, as its own service knows it.
    ///
    /// - Throws: `ControlFailure` for a name that is not in the configuration; `PeerUnreachable`.
    public func health(of host: String) throws -> HealthReport {
        if environment.isThisHost(host), let own = ownHealth { return own }
        let peer = try environment.peer(host)
        guard let report = try environment.client(of: peer).ask(PeerRequest(.health, host: environment.hostName), timeoutMs: 10_000).health else {
            throw ControlFailure("\(peer.name) does not know of its hardware's health", advice: "Is shadow-virt there of the same release (\(ProductVersion.text))?")
        }
        return report
    }

    func answerHealth() -> PeerResponse {
        var response = PeerResponse()
        response.health = ownHealth
        return response
    }
}
