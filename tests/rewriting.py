"""Python source that does the same: with a remark, other docstrings, other line breaks, and other names for locals."""

import ast

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Renaming(ast.NodeTransformer):
    def __init__(self, names):
        self.names = names

    def visit_Name(self, node):
        if node.id in self.names:
            node.id = f"zz_{node.id}"
        return node


def rewritten(source):
    """`(the source, how many locals have another name)`."""
    tree, count = ast.parse(source), 0
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            node.body[0].value.value = "Says it in other words."
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            names = locals_of(node)
            count += len(names)
            node.body = [Renaming(names).visit(statement) for statement in node.body]
    return f"# A remark.\n{ast.unparse(tree)}\n", count


def locals_of(function):
    """The names that a function binds, and nothing inside it does."""
    bound, kept = set(), set(arguments(function))

    def inside(node):
        for each in ast.walk(node):
            if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                kept.add(each.id)
            if isinstance(each, FUNCTIONS):
                kept.update(arguments(each))

    def walk(node):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Global, ast.Nonlocal)):
                kept.update(child.names)
            if isinstance(child, (*FUNCTIONS, ast.ClassDef)):
                kept.add(getattr(child, "name", ""))
                if isinstance(child, FUNCTIONS):
                    kept.update(arguments(child))
                inside(child)
                continue
            if isinstance(child, COMPREHENSIONS):
                inside(child)
            if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
                bound.add(child.id)
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                kept.update((alias.asname or alias.name).split(".")[0] for alias in child.names)
            if isinstance(child, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
                kept.add(child.name)
            walk(child)

    walk(function)
    return bound - kept


def arguments(function):
    of = function.args
    every = [*of.posonlyargs, *of.args, *of.kwonlyargs, *filter(None, (of.vararg, of.kwarg))]
    return {argument.arg for argument in every}
