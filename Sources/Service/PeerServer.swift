import Foundation
import Glibc
import Orchestration
import Platform
import Transport

/// The port on which other hosts' services come in: requests, and the epochs of their guests.
final class PeerServer: Sendable {
    private let registry: Registry
    private let environment: HostEnvironment
    /// Connections that have not proved who they are; more than these at once are turned away.
    private static let mostStrangers = 64
    private let strangers = Guarded(0)
    private let lastWarnings = Guarded<[String: MonotonicTime]>([:])

    init(registry: Registry, environment: HostEnvironment) {
        self.registry = registry
        self.environment = environment
    }

    /// Accepts until the process ends.
    func accept(on listener: Int32) {
        while true {
            do {
                guard let descriptor = try acceptConnection(listener, until: nil) else { continue }
                guard strangers.change({ count in
                    guard count < Self.mostStrangers else { return false }
                    count += 1
                    return true
                }) else { continue }
                TCP.tune(descriptor.raw, stallMilliseconds: Int32(environment.configuration.peerTimeoutMs))
                let raw = descriptor.release()
                startThread("peer") { [self] in greet(Descriptor(owning: raw)) }
            } catch {
                Log.error("The peers' port: \(error)")
                usleep(100_000)
            }
        }
    }

    private func greet(_ descriptor: consuming Descriptor) {
        var isStranger = true
        func known() {
            if isStranger { strangers.change { $0 -= 1 } }
            isStranger = false
        }
        defer { known() }
        let from = TCP.peerName(descriptor.raw)
        let deadline = MonotonicTime.now.adding(milliseconds: Double(environment.configuration.peerTimeoutMs))
        do {
            let peer = try Handshake.accept(descriptor.raw, secret: environment.secret, deadline: deadline)
            known()
            switch peer.purpose {
            case .control:
                // It is told before it gives up by itself.
                guard registry.isTakenUp(by: MonotonicTime.now.adding(milliseconds: Double(environment.configuration.peerTimeoutMs) / 2)) else {
                    return try Handshake.conclude(descriptor.raw, .refused("\(environment.hostName) has just started and does not know yet what it left"), deadline: deadline)
                }
                try Handshake.conclude(descriptor.raw, .welcome, deadline: deadline)
                answer(MessageChannel(descriptor))
            case .data:
                guard registry.knows(session: peer.session) else {
                    return try Handshake.conclude(descriptor.raw, .unknownSession("\(environment.hostName) does not know this session any more"), deadline: deadline)
                }
                try Handshake.conclude(descriptor.raw, .welcome, deadline: deadline)
                registry.connect(session: peer.session, descriptor)
            }
        } catch HandshakeError.channel(let error) {
            warn(from, "A connection from \(from) ended during the handshake (\(error)): does it hold the same secret?")
        } catch {
            warn(from, "A connection from \(from) was refused: \(error)")
        }
    }

    /// One warning a minute and address; the rest for those who debug. The port is open to whoever reaches it.
    private func warn(_ address: String, _ message: String) {
        let isFirst = lastWarnings.change { last in
            if last.count > 1000 { last = [:] }
            if let before = last[address], MonotonicTime.now.milliseconds(since: before) < 60_000 { return false }
            last[address] = .now
            return true
        }
        if isFirst { Log.warning(message) } else { Log.debug(message) }
    }

    private func answer(_ channel: MessageChannel) {
        while true {
            do {
                let request = try channel.receive(PeerRequest.self, deadline: nil)
                let response = registry.answer(request)
                try channel.send(response, deadline: MonotonicTime.now.adding(milliseconds: 5000))
            } catch ChannelError.closed(received: 0, expected: _) {
                return
            } catch {
                return Log.debug("A peer's connection ended: \(error)")
            }
        }
    }
}
