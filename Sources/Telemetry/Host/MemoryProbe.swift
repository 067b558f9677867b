import Glibc
import Platform

/// How long a load from memory takes: a walk along a chain of pointers, each of which has to be there before the next can be asked for, so
/// that neither prefetching nor out-of-order execution hides anything. The chain visits every cache line of a buffer larger than the cache in
/// an order without a pattern; each look goes on where the last one ended, on lines that other work has long pushed out of the cache.
final class MemoryProbe: @unchecked Sendable {
    private static let lineBytes = 64
    /// Enough for one look to take 1 to 3 ms.
    private static let loadsPerPart = 1500
    /// Their lower quartile counts: on a busy host something else runs in between, which steal and pressure tell of.
    private static let parts = 9
    /// Beyond that it is memory taken from guests. With caches larger than half of it some of the loads may be answered by the cache.
    static let ceiling = 128 << 20
    private static let least = 16 << 20

    private let memory: MappedMemory
    private var position: UInt32 = 0

    /// Twice the largest cache, within limits.
    static func size(_ files: HostFiles) -> Int {
        let folder = "/sys/devices/system/cpu/cpu0/cache"
        let sizes = files.numbered("index", in: folder).compactMap { files.text("\(folder)/\($0)/size") }.compactMap(bytes)
        return min(ceiling, max(least, 2 * (sizes.max() ?? 0)))
    }

    /// `32768K`, as sysfs writes it.
    private static func bytes(_ text: String) -> Int? {
        let digits = text.prefix { $0.isASCII && $0.isNumber }
        guard let number = Int(digits), number < 1 << 30 else { return nil }
        switch text[digits.endIndex...].first {
        case "K": return number << 10
        case "M": return number << 20
        default: return number
        }
    }

    init(bytes: Int) throws {
        let lines = max(2, min(bytes, Self.ceiling) / Self.lineBytes)
        memory = try MappedMemory.anonymous(lines * Self.lineBytes)
        // With huge pages, which the kernel may make later on, the same memory would seem faster from one day to the next.
        madvise(memory.base, memory.length, 15 /* MADV_NOHUGEPAGE */)
        Self.link(memory.base.assumingMemoryBound(to: UInt32.self), lines)
    }

    /// Sattolo's shuffle: one cycle through all lines. The word at the head of a line names the next one.
    private static func link(_ words: UnsafeMutablePointer<UInt32>, _ lines: Int) {
        let stride = lineBytes / 4
        for line in 0..<lines { words[line * stride] = UInt32(line) }
        // xorshift64: quick, and good enough to be no pattern.
        var random: UInt64 = 0x9e37_79b9_7f4a_7c15
        var line = lines - 1
        while line > 0 {
            random ^= random << 13
            random ^= random >> 7
            random ^= random << 17
            let other = Int(random % UInt64(line))
            let kept = words[line * stride]
            words[line * stride] = words[other * stride]
            words[other * stride] = kept
            line -= 1
        }
    }

    /// Nanoseconds a load.
    func look() -> Double {
        let times = (0..<Self.parts).map { _ in walk() }.sorted()
        return times[times.count / 4]
    }

    private func walk() -> Double {
        let words = memory.base.assumingMemoryBound(to: UInt32.self)
        var at = position
        let begin = MonotonicTime.now
        var left = Self.loadsPerPart
        while left > 0 {
            at = words[Int(truncatingIfNeeded: at) &* 16]
            left &-= 1
        }
        let end = MonotonicTime.now
        position = at
        return end.milliseconds(since: begin) * 1e6 / Double(Self.loadsPerPart)
    }

    /// Lines that the chain visits before it is back where it began; for tests.
    var cycle: Int {
        let words = memory.base.assumingMemoryBound(to: UInt32.self)
        var (at, count) = (words[0], 1)
        while at != 0, count <= memory.length { (at, count) = (words[Int(at) * 16], count + 1) }
        return count
    }
}
