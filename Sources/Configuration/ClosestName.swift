/// Finds what somebody who mistyped a word most likely meant.
public enum ClosestName {
    /// The candidate nearest to `word`, or nil when none is near enough to be worth suggesting: at most a third of the
    /// word may differ, and at least one edit is always forgiven. A candidate that begins with the word counts as near.
    public static func to(_ word: String, among candidates: some Sequence<String>) -> String? {
        // A word longer than any name is no typing error, and the distance costs its length squared.
        guard !word.isEmpty, word.utf8.count <= 64 else { return nil }
        let limit = max(1, word.count / 3)
        var best: (name: String, distance: Int)?
        for name in candidates {
            let near = word.count >= 3 && name.hasPrefix(word)
            let distance = near ? 1 : Self.distance(word.lowercased(), name.lowercased())
            if distance <= limit, distance < best?.distance ?? Int.max { best = (name, distance) }
        }
        return best?.name
    }

    /// Edits (insert, delete, replace, swap of two neighbours) that turn `a` into `b`.
    static func distance(_ a: String, _ b: String) -> Int {
        let a = Array(a), b = Array(b)
        if a.isEmpty || b.isEmpty { return max(a.count, b.count) }
        var previous = [Int](), current = Array(0...b.count)
        for i in 1...a.count {
            let beforePrevious = previous
            previous = current
            current[0] = i
            for j in 1...b.count {
                let replaced = previous[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)
                current[j] = min(previous[j] + 1, current[j - 1] + 1, replaced)
                if i > 1, j > 1, a[i - 1] == b[j - 2], a[i - 2] == b[j - 1] {
                    current[j] = min(current[j], beforePrevious[j - 2] + 1)
                }
            }
        }
        return current[b.count]
    }
}
