import ControlProtocol
import Foundation
import Libvirt
import Platform

/// What keeps two shadows of one guest from both becoming it: the primary's service gives its word to one host only (`claim`), and where that
/// service is gone the shadows ask each other.
extension Registry {
    /// Throws unless no sibling runs the guest, is about to, or holds a later epoch, or the administrator takes the risk.
    func askSiblings(_ shadow: ShadowProtection, force: Bool, progress: (String) -> Void) throws {
        let mine = try shadow.siblingState()
        for sibling in shadow.siblings {
            let state: SiblingState
            do { state = try ask(sibling.host, about: shadow) } catch {
                // Also of one that answers but cannot tell, because its libvirt is away for one: by now the primary may have been destroyed by force.
                let reason = (error as? PeerUnreachable)?.reason ?? "\(error)"
                guard force else {
                    throw ControlFailure("\(sibling.host) holds another shadow of \(shadow.name) and cannot be asked whether it runs there: \(reason)",
                                         advice: "Bring \(sibling.host) back or make sure that the guest does not run there, then use `--force`: if it does, there are two running copies of it")
                }
                progress("--force: starting \(shadow.name) though nobody knows whether its other shadow runs on \(sibling.host) (\(reason)). If it does, two copies run at once")
                continue
            }
            guard let problem = Self.problem(sibling.host, state, mine, shadow) else { continue }
            guard force else { throw problem }
            progress("--force: \(problem.message). Going ahead all the same")
        }
    }

    private func ask(_ host: String, about shadow: ShadowProtection) throws -> SiblingState {
        let peer = try environment.peer(host)
        guard let state = try environment.client(of: peer).ask(PeerRequest(.sibling, host: environment.hostName, uuid: shadow.uuid, domain: shadow.name)).sibling else {
            throw ControlFailure("\(peer.name) did not say where its shadow stands")
        }
        return state
    }

    /// What speaks against this shadow becoming the guest, because of another one; nil: nothing.
    static func problem(_ host: String, _ state: SiblingState, _ mine: SiblingState, _ shadow: ShadowProtection) -> ControlFailure? {
        if state.runs {
            return ControlFailure("Domain \(shadow.name) runs on \(host), from its shadow there", advice: "Remove the shadow here with `virsh destroy \(shadow.name)`, or protect the guest anew from \(host)")
        }
        if state.isTakingOver { return ControlFailure("The shadow of \(shadow.name) on \(host) is just being made the guest", advice: "`shadow-virt status` there shows how that ends") }
        if state.phase == .loaded {
            return ControlFailure("The shadow of \(shadow.name) on \(host) has the guest loaded and waits for the word of \(shadow.primary)",
                                  advice: "Run `shadow-virt failover \(shadow.name)` there")
        }
        guard state.isFresher(than: mine) else { return nil }
        return ControlFailure("The shadow of \(shadow.name) on \(host) is fresher: it holds epoch \(state.epoch), the one here \(mine.epoch)",
                              advice: "Run `shadow-virt failover \(shadow.name)` there; `--force` here loses what came after epoch \(mine.epoch)")
    }

    /// The answer to a sibling.
    func siblingState(_ uuid: String) throws -> PeerResponse {
        var response = PeerResponse()
        if let shadow = shadow(uuid) {
            response.sibling = try shadow.siblingState()
        } else {
            var runs = false
            do { runs = try environment.connect().lookup(uuid: uuid).isActive() } catch let error as LibvirtError where error.isNoDomain {}
            response.sibling = SiblingState(phase: .unknown, epoch: 0, isTakingOver: false, runs: runs)
        }
        return response
    }

    // MARK: The primary's word

    /// A primary's promise to order no other host; to be given back when the guest did not come up.
    struct Claim {
        let giveBack: () -> Void
    }

    /// Asks the primary's service, if it is there, that no other shadow be made the guest meanwhile.
    func claimGuest(_ shadow: ShadowProtection, force: Bool, progress: (String) -> Void) throws -> Claim {
        let none = Claim {}
        guard !shadow.siblings.isEmpty else { return none }
        let client = environment.client(of: try environment.peer(shadow.primary))
        do {
            _ = try client.ask(PeerRequest(.claim, host: environment.hostName, uuid: shadow.uuid, domain: shadow.name))
            return Claim { [environment, uuid = shadow.uuid] in _ = try? client.ask(PeerRequest(.unclaim, host: environment.hostName, uuid: uuid)) }
        } catch is PeerUnreachable {
            // It orders nobody. What it may have ordered before, the siblings were asked.
            return none
        } catch let failure as ControlFailure {
            guard force else { throw failure }
            progress("--force: \(failure.message). Going ahead all the same")
            return none
        }
    }

    func answerClaim(_ request: PeerRequest) throws -> PeerResponse {
        guard let protection = primary((request.uuid ?? "").lowercased()) else { return PeerResponse() }
        guard request.verb == .claim else {
            // Also of a host whose shadow was taken away meanwhile: nobody else would give it back.
            protection.giveBackClaim(request.host)
            return PeerResponse()
        }
        // By the name that it has here: the two must be one claimant when this service is about to order the same host.
        guard let host = protection.slot(request.host)?.peer.name else {
            throw ControlFailure("\(request.host) has no shadow of \(protection.domain.name) any more, as \(environment.hostName) sees it: what it holds is out of date",
                                 advice: "`shadow-virt status \(protection.domain.name)` on \(environment.hostName) shows where its shadows are")
        }
        guard protection.claim(host) else {
            throw ControlFailure("\(environment.hostName) has ordered \(protection.claimant.read { $0 } ?? "another host") to run \(protection.domain.name)",
                                 advice: "`shadow-virt status` there tells how that ended")
        }
        return PeerResponse()
    }
}
