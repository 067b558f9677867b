/// Consecutive extents from an offset on: neighbours differ, none is empty, and all together they are no longer than `total`.
struct ExtentList {
    private(set) var list: [(length: UInt64, state: NBDExtentState)] = []
    private let limit: Int
    private var left: UInt64
    /// An extent was one too many: what follows has no place here.
    private var isFull = false

    init(limit: Int, total: UInt64) {
        self.limit = limit
        left = total
    }

    mutating func add(_ length: UInt64, _ state: NBDExtentState) {
        let size = min(length, left)
        guard size > 0, !isFull else { return }
        if let last = list.last, last.state == state {
            list[list.count - 1].length += size
        } else if list.count < limit {
            list.append((size, state))
        } else {
            isFull = true
            return
        }
        left -= size
    }

    /// Covers what is left with one state.
    mutating func fill(_ state: NBDExtentState) {
        guard left > 0 else { return }
        if let last = list.last, last.state == state {
            list[list.count - 1].length += left
        } else {
            list.append((left, state))
        }
        left = 0
    }

    /// Leaves two kinds only, data and long runs of zeros.
    mutating func mergeHoles(below least: UInt64) {
        let old = list
        list = []
        for extent in old {
            let state: NBDExtentState = extent.state.contains(.zero) && extent.length >= least ? .zero : []
            if let last = list.last, last.state == state {
                list[list.count - 1].length += extent.length
            } else {
                list.append((extent.length, state))
            }
        }
    }
}
