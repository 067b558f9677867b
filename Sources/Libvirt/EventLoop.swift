import CLibvirt
import Foundation

/// libvirt's event loop, on a thread of its own for the life of the process. Callbacks run there, and keepalive depends on it: a handler
/// that blocks it delays every event of every connection, and in the end loses them.
public enum EventLoop {
    /// Starts the loop once; later calls do nothing. `Connection.open` calls it: an implementation registered after a connection was
    /// opened has no effect on it (`virEventRegisterDefaultImpl`, `virEventRunDefaultImpl`). Also silences libvirt's default error
    /// handler, which prints every failed call to stderr (`virSetErrorFunc`).
    public static func start() { _ = loop }

    /// Whether the caller runs on the loop's thread, in a handler.
    public static var isCurrent: Bool { loop.withLock { $0 === Thread.current } }

    private static let loop: Locked<Thread> = {
        virInitialize()
        virSetErrorFunc(nil) { _, _ in }
        virEventRegisterDefaultImpl()
        let thread = Thread {
            while true {
                // Fails only when no implementation is registered; don't spin then.
                if virEventRunDefaultImpl() < 0 { usleep(100_000) }
            }
        }
        thread.name = "libvirt-events"
        thread.start()
        return Locked(thread)
    }()
}
