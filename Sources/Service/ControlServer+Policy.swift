import Configuration
import ControlProtocol
import Orchestration
import Platform

/// Policies, placement, and emptying a host.
extension ControlServer {
    func answerPolicy(_ request: ControlRequest, _ progress: @escaping @Sendable (ControlResponse.Progress) -> Void) throws -> ControlResponse {
        let domain = try named(request)
        var response = ControlResponse()
        if request.verb == .placement {
            response.placement = try withProgress({ .init("Asking the other hosts") }, progress) { [registry] in try registry.placement(domain) }
        } else {
            guard let action = request.policy else { throw ControlFailure("The request does not say what to do with the policy") }
            response.policy = try registry.policy(domain, action)
        }
        return response
    }

    /// Ctrl-C ends it after the guest that is on its way.
    func drain(_ request: ControlRequest, _ channel: LineChannel, _ progress: @escaping @Sendable (ControlResponse.Progress) -> Void) throws -> ControlResponse {
        let isDrain = request.verb == .drain
        if let host = request.to, !HostName.isSame(host, configuration.hostName) {
            throw ControlFailure("\(host) is not this host (\(configuration.hostName)): each host is \(isDrain ? "drained" : "undrained") by its own service",
                                 advice: "Run `shadow-virt \(request.verb.rawValue)` on \(host)")
        }
        let isCancelled = Guarded(false)
        watchForCancel(channel) { isCancelled.change { $0 = true } }
        guard registry.beginDrain() else { throw ControlFailure("This host is being drained or undrained already", advice: "Wait for that command to end") }
        defer { registry.endDrain() }
        let isDryRun = request.dryRun ?? false
        let last = Guarded(isDrain ? "Draining \(configuration.hostName)" : "Bringing guests back to \(configuration.hostName)")
        let notice: Drain.Notice = { text in
            last.change { $0 = text }
            progress(ControlResponse.Progress(text, isNotice: true))
        }
        var response = ControlResponse()
        response.drain = try withProgress({ ControlResponse.Progress(last.read { $0 }) }, progress) { [registry] in
            isDrain ? try Drain(registry, isCancelled: { isCancelled.read { $0 } }, notice: notice).run(dryRun: isDryRun)
                : try Undrain(registry, isCancelled: { isCancelled.read { $0 } }, notice: notice).run(dryRun: isDryRun)
        }
        return response
    }
}
