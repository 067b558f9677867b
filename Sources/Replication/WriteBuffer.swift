import Glibc
import Platform

/// A piece of memory that a guest's disk writes are received into, and that holds them until the shadow has committed their epoch.
///
/// Written by one connection's thread, only ever behind what was handed out; whoever holds the buffer may read there.
final class WriteBuffer: @unchecked Sendable {
    let base: UnsafeMutableRawPointer
    let capacity: Int
    private let pool: WriteBufferPool
    /// The last segment that holds it, by its number; behind the lock of the capture that it belongs to.
    var segment: UInt64 = 0

    fileprivate init(base: UnsafeMutableRawPointer, capacity: Int, pool: WriteBufferPool) {
        self.base = base
        self.capacity = capacity
        self.pool = pool
    }

    /// The last epoch that has writes here is gone.
    deinit { pool.give(base) }
}

/// Memory for disk writes, with a ceiling. From any thread.
final class WriteBufferPool: @unchecked Sendable {
    private struct State {
        var free: [UnsafeMutableRawPointer] = []
        var buffers = 0
    }

    /// Twice the largest write, so that at most a half of a buffer is wasted at its end.
    static let bufferBytes = 2 << 20
    /// Free buffers that stay mapped: a steady stream of small epochs needs two or three.
    private static let keep = 4

    let limitBytes: Int
    private let state = Guarded(State())

    init(limitBytes: Int) { self.limitBytes = max(limitBytes, 4 * Self.bufferBytes) }

    deinit {
        state.change { state in
            for base in state.free { munmap(base, Self.bufferBytes) }
        }
    }

    /// Bytes of all buffers in use.
    var bytesInUse: Int { state.read { $0.buffers * Self.bufferBytes } }

    /// An empty buffer; nil at the ceiling, or when the kernel has no memory.
    /// - Parameter beyondLimit: for what is thrown away: each disk uses one over and over.
    func take(beyondLimit: Bool = false) -> WriteBuffer? {
        let recycled: UnsafeMutableRawPointer?? = state.change { state in
            guard beyondLimit || (state.buffers + 1) * Self.bufferBytes <= limitBytes else { return .some(nil) }
            state.buffers += 1
            guard let base = state.free.popLast() else { return .none }
            return .some(base)
        }
        switch recycled {
        case .some(nil): return nil
        case .some(let base?): return WriteBuffer(base: base, capacity: Self.bufferBytes, pool: self)
        case .none:
            guard let base = mmap(nil, Self.bufferBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), base != MAP_FAILED else {
                state.change { $0.buffers -= 1 }
                return nil
            }
            return WriteBuffer(base: base, capacity: Self.bufferBytes, pool: self)
        }
    }

    fileprivate func give(_ base: UnsafeMutableRawPointer) {
        let isUnneeded = state.change { state in
            state.buffers -= 1
            guard state.free.count < Self.keep else { return true }
            state.free.append(base)
            return false
        }
        if isUnneeded { munmap(base, Self.bufferBytes) }
    }
}
