import Foundation

/// The `opaque` that libvirt keeps for a callback: a number for an object, never a pointer to it.
///
/// A callback that comes too late, and a free function that is called twice or not at all, then find nothing, where a pointer would lead to freed memory.
/// libvirt (9.0 to 11) does the former: when a registration fails while events are handed out, `virObjectEventStateDeregisterID` only marks the
/// callback, and its free function is called afterwards though the caller was told that it would not be.
struct CallbackContext: Sendable {
    /// Never NULL.
    private let number: UInt

    private struct Table {
        var last: UInt = 0
        var objects: [UInt: any AnyObject & Sendable] = [:]
    }

    private static let table = Locked(Table())

    /// Holds the object until `release`.
    init(holding object: any AnyObject & Sendable) {
        number = Self.table.withLock { table in
            table.last += 1
            table.objects[table.last] = object
            return table.last
        }
    }

    /// As libvirt gives it to a callback; nil: NULL.
    private init?(_ opaque: UnsafeMutableRawPointer?) {
        guard let opaque else { return nil }
        number = UInt(bitPattern: opaque)
    }

    /// Nil only for the number 0, which is none.
    var opaque: UnsafeMutableRawPointer? { UnsafeMutableRawPointer(bitPattern: number) }

    var isHeld: Bool { Self.table.withLock { $0.objects[number] != nil } }

    /// The object, if it is held still.
    static func object<Object>(_ opaque: UnsafeMutableRawPointer?, as type: Object.Type = Object.self) -> Object? {
        CallbackContext(opaque).flatMap { context in table.withLock { $0.objects[context.number] } } as? Object
    }

    /// Gives the object back; the second time nothing happens.
    func release() {
        // Freed outside of the lock: what hangs on it may come back here.
        let object = Self.table.withLock { $0.objects.removeValue(forKey: number) }
        withExtendedLifetime(object) {}
    }

    /// The `virFreeCallback`.
    static let free: @convention(c) (UnsafeMutableRawPointer?) -> Void = { CallbackContext($0)?.release() }

    /// Waits until libvirt has given it back; false when it has not by `end` (CLOCK_MONOTONIC). Not on the event loop's thread, which gives it back.
    func waitUntilReleased(by end: UInt64) -> Bool {
        while isHeld {
            if monotonicNanoseconds() >= end { return false }
            usleep(1000)
        }
        return true
    }
}
