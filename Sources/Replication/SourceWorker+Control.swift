import Glibc
import Platform

/// What the parent orders, on a thread of its own.
extension SourceWorker {
    func controlLoop() {
        while true {
            let message: (WorkerCommand, Int32)?
            do { message = try parent.receive(WorkerCommand.self) } catch { message = nil }
            guard let (command, fd) = message else {
                orders.change { $0.orphaned = true }
                endFirstCopy()
                wake.signal()
                return
            }
            if fd >= 0 { close(fd) }
            orders.change { orders in
                switch command.verb {
                case .firstCopyDone: orders.firstCopyDone = true
                case .hold:
                    orders.hold = true
                    orders.holdPeer = followers.indices.contains(command.peer ?? 0) ? command.peer ?? 0 : 0
                    // A release that came before is for an earlier hold.
                    orders.release = false
                case .release:
                    orders.release = true
                    orders.hold = false
                case .suspend: orders.suspended = true
                case .resume: orders.suspended = false
                case .standBack: orders.standBack = true
                case .goOn: orders.standBack = false
                case .setInterval: orders.intervalMs = command.intervalMs ?? orders.intervalMs
                case .endStream: (orders.stop, orders.staysForMirrors) = (true, true)
                case .stop: (orders.stop, orders.staysForMirrors) = (true, false)
                case .takePass: (orders.pass, orders.passPeer, orders.isPassCancelled, orders.verdict) = (command.pass, command.peer, false, nil)
                case .cancelPass: (orders.pass, orders.isPassCancelled) = (nil, true)
                case .seal: orders.verdict = .seal(stoppedAt: command.stoppedAt ?? 0, resumedAt: command.resumedAt)
                case .dropPass: orders.verdict = .drop
                case .cutDisks, .disksReady, .dropPeer, .startSource, .startShadow, .connection, .activate: break
                }
            }
            if command.verb == .cutDisks { cutDisksForGood() }
            if command.verb == .disksReady { followDisks() }
            if command.verb == .dropPeer, let peer = command.peer, followers.indices.contains(peer) { drop(followers[peer]) }
            if command.verb == .stop || command.verb == .endStream { endFirstCopy() }
            wake.signal()
        }
    }

    /// A connection of QEMU's whose end leaves the guest running, or nil: it is not to be ended.
    func mayBreak(_ fd: Int32?) {
        firstCopyConnection.change { $0 = fd }
        if fd != nil, isToldToEnd { endFirstCopy() }
    }

    /// A migration that breaks in its first copy leaves the guest running.
    private func endFirstCopy() {
        firstCopyConnection.read { fd in
            if let fd { shutdown(fd, Int32(SHUT_RDWR)) }
        }
    }

    /// Also when this worker ends by itself: its mirrors are waited for, and must not wait for anything themselves.
    var isEnding: Bool { isToldToEnd || isOver.read { $0 } }

    var isToldToEnd: Bool { orders.read { $0.stop || $0.orphaned } }
}
