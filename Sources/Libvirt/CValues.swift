import CLibvirt
import Foundation

/// A C result below zero is a failure: nil, so that `call` reads libvirt's error.
func ok(_ result: Int32) -> Int32? { result < 0 ? nil : result }

/// 1 true, 0 false, -1 failed.
func truth(_ result: Int32) -> Bool? { result < 0 ? nil : result > 0 }

/// Takes over a string that libvirt allocated.
func owned(_ string: UnsafeMutablePointer<CChar>?) -> String? {
    guard let string else { return nil }
    defer { free(string) }
    return String(cString: string)
}

/// Copies a string that stays libvirt's.
func borrowed(_ string: UnsafePointer<CChar>?) -> String? { string.map { String(cString: $0) } }

/// Runs a C function that fills a UUID string buffer.
func uuidString(_ fill: (UnsafeMutablePointer<CChar>) -> Int32) -> String? {
    withUnsafeTemporaryAllocation(of: CChar.self, capacity: Int(VIR_UUID_STRING_BUFLEN)) { buffer in
        guard let start = buffer.baseAddress, fill(start) == 0 else { return nil }
        return String(cString: start).lowercased()
    }
}

/// Takes over a NULL-terminated array of objects, as the `virConnectListAll...` functions return them.
func ownedList<Object>(count: Int32, _ list: UnsafeMutablePointer<OpaquePointer?>?, _ wrap: (OpaquePointer) -> Object) -> [Object]? {
    guard count >= 0 else { return nil }
    defer { free(list) }
    return (0..<Int(count)).compactMap { list?[$0].map(wrap) }
}

/// CLOCK_MONOTONIC in nanoseconds; it never steps.
func monotonicNanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}

/// A value behind a lock. Bodies are short and never call into libvirt.
final class Locked<Value>: @unchecked Sendable {
    private let lock = NSLock()
    private var value: Value

    init(_ value: Value) { self.value = value }

    func withLock<Result>(_ body: (inout Value) -> Result) -> Result {
        lock.lock()
        defer { lock.unlock() }
        return body(&value)
    }
}

/// Lends an array of C strings for the call.
func withCStrings<Result>(_ strings: [String], _ body: (UnsafeMutablePointer<UnsafePointer<CChar>?>?) -> Result) -> Result {
    var copies = strings.map { UnsafePointer(strdup($0)) }
    defer { copies.forEach { free(UnsafeMutablePointer(mutating: $0)) } }
    return copies.withUnsafeMutableBufferPointer { body($0.baseAddress) }
}
