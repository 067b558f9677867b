import ControlProtocol
import Foundation
import Glibc
import Orchestration
import Platform

extension Notification {
    static func watchdog() { send("WATCHDOG=1") }

    /// systemd.service(5), Type=notify-reload: the begin of a reload and its end; older systemd takes the second for a READY.
    static func reloading() { send("RELOADING=1\nMONOTONIC_USEC=\(MonotonicTime.now.nanoseconds / 1000)") }
    static func reloaded() { send("READY=1\nSTATUS=Serving") }
}

/// Signs of life for systemd (`WatchdogSec=`), given by a thread that first does what everybody else does here: takes the registry's lock and talks to the
/// control socket. When either hangs, or the whole process does, the signs stay away, and systemd starts the service anew; guests run on meanwhile.
final class Watchdog: Sendable {
    private let intervalMs: Double
    private let isAlive: @Sendable (_ limit: MonotonicTime) -> Bool

    /// Nil when systemd asked for none (sd_watchdog_enabled(3)). `isAlive` gets the moment until which its answer counts.
    init?(environment: [String: String], isAlive: @escaping @Sendable (_ limit: MonotonicTime) -> Bool) {
        guard let text = environment["WATCHDOG_USEC"], let microseconds = Double(text), microseconds >= 1000 else { return nil }
        if let pid = environment["WATCHDOG_PID"], pid != String(getpid()) { return nil }
        intervalMs = microseconds / 1000
        self.isAlive = isAlive
    }

    /// A sign three times an interval: one may be late, or lost to a busy machine.
    func start() {
        startThread("watchdog") { [self] in
            var wasAlive = true
            while true {
                let begin = MonotonicTime.now
                let lives = isAlive(begin.adding(milliseconds: intervalMs / 2))
                if lives { Notification.watchdog() }
                if lives != wasAlive {
                    if lives { Log.info("The service answers again") } else { Log.error("The service does not answer itself: systemd gets no sign of life until it does") }
                }
                wasAlive = lives
                usleep(useconds_t(max(1, intervalMs / 3 - MonotonicTime.now.milliseconds(since: begin)) * 1000))
            }
        }
    }

    /// Whether the registry's lock is to be had and somebody accepts at the control socket. A service that turns a connection away because it has
    /// too many is alive.
    static func answers(_ registry: Registry, socket: String, until limit: MonotonicTime) -> Bool {
        // Hangs here when the lock is never given back: then no sign either.
        _ = try? registry.status(of: nil)
        let client = ControlClient(path: socket, silenceLimitMs: max(1, limit.milliseconds(since: .now)))
        do {
            return try client.exchange(ControlRequest(.ping)).failure == nil
        } catch {
            if case .closed = error { return true }
            return false
        }
    }
}
